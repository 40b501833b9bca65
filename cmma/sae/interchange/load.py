"""Reading a dictionary of any format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmma.errors import ArtifactError, ConfigError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.interchange import dictionary_learning, saelens, sparsify
from cmma.sae.interchange.config import ImportConfig
from cmma.sae.interchange.source import find_folder
from cmma.sae.io import DESCRIPTION, load_own

READERS = {
    (saelens.CONFIG, saelens.WEIGHTS): saelens.read_saelens,
    (sparsify.CONFIG, sparsify.WEIGHTS): sparsify.read_sparsify,
    (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS): dictionary_learning.read_dictionary_learning,
}
"""Which files make which format."""


def load_sae(
    source: str | Path, device: str = "cpu", *, subfolder: str = "", revision: str | None = None
) -> SparseAutoencoder:
    """Read a dictionary: ours, or one of SAELens, sparsify or dictionary_learning.

        sae = load_sae("lmms-lab/llama3-llava-next-8b-hf-sae-131k", subfolder="model.layers.24")
        latents = sae.encode(x)            # [n, d] → [n, K]
        reconstruction = sae.decode(latents)

    A foreign dictionary computes what its library computes, to rounding; its decoder is never renormalised, and it
    reads records as they are: nothing is standardised.

    Args:
        source: folder of a dictionary, of a `train-sae` artifact, or repository on the Hugging Face hub.
        device: where the weights go.
        subfolder: inside the source.
        revision: of the repository; a commit pins it.

    Raises:
        ConfigError: there is no such folder or subfolder. ArtifactError: a file is missing or damaged, or a key, shape,
            architecture or normalisation cannot be honoured. One line that names it.
    """
    folder = find_folder(source, subfolder, revision)
    if (folder / DESCRIPTION).is_file():
        return load_own(folder, device)
    for files, read in READERS.items():
        if all((folder / name).is_file() for name in files):
            return read(folder).build(folder).to(device)
    formats = "; ".join(" and ".join(files) for files in READERS)
    raise ArtifactError(f"there is no {DESCRIPTION} in {folder}, and not the files of another format ({formats}); it "
                        "should be the folder of a trained dictionary")


def import_sae(config: ImportConfig, blocks: Sequence[int] | None = None, device: str = "cpu") -> SparseAutoencoder:
    """The dictionary that a configuration names.

    Args:
        config: where it is.
        blocks: widths of the parts of the records that it is to read (`ActivationReader.blocks`); None: any.
        device: where the weights go.

    Raises:
        ConfigError: no source, one that `load_sae` refuses, or a dictionary of other records.
    """
    if not config.source:
        raise ConfigError("imported.source is not set; name a folder or a repository on the hub (owner/name)")
    try:
        sae = load_sae(config.source, device, subfolder=config.subfolder, revision=config.revision)
    except ArtifactError as error:
        raise ConfigError(str(error)) from error
    own = sae.standardiser.blocks
    if blocks is not None and own != tuple(blocks):
        widths, expected = (" + ".join(map(str, parts)) for parts in (own, blocks))
        raise ConfigError(f"{config.source} reads records of width {widths}, and those of this model and layer have "
                          f"width {expected}; choose the model and layer that it was trained on")
    return sae
