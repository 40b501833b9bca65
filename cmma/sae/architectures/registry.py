"""From a configuration to a dictionary."""

from __future__ import annotations

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.batchtopk import BatchTopK
from cmma.sae.architectures.gated import Gated
from cmma.sae.architectures.group_sparse import GroupSparse
from cmma.sae.architectures.jumprelu import JumpReLU
from cmma.sae.architectures.matryoshka import Matryoshka
from cmma.sae.architectures.msae import MSAE
from cmma.sae.architectures.msae_decoders import MSAEDecoders
from cmma.sae.architectures.separate_matched import SeparateMatched
from cmma.sae.architectures.sparc import SPARC
from cmma.sae.architectures.standard import Standard
from cmma.sae.architectures.topk import TopK
from cmma.sae.architectures.vl_sae import VLSAE
from cmma.sae.config import SAEConfig
from cmma.sae.records import generator
from cmma.sae.standardiser import Standardiser

CLASSES: dict[str, type[SparseAutoencoder]] = {
    "msae": MSAE, "msae_decoders": MSAEDecoders, "standard": Standard, "gated": Gated, "jumprelu": JumpReLU,
    "topk": TopK, "batchtopk": BatchTopK, "matryoshka": Matryoshka, "sparc": SPARC, "group_sparse": GroupSparse,
    "separate_matched": SeparateMatched, "vl_sae": VLSAE,
}
"""One entry per file of this package; `cmma.sae.config.ARCHITECTURES` lists the same names without torch."""


def build_sae(config: SAEConfig, d: int, standardiser: Standardiser, seed: int = 0) -> SparseAutoencoder:
    """A fresh dictionary.

    Args:
        config: architecture and objective.
        d: record width.
        standardiser: statistics of the records (`Standardiser.fit`).
        seed: of the initial features.

    Raises:
        ConfigError: an architecture that cannot read such records.
    """
    return CLASSES[config.arch](config, d, standardiser, generator("sae", seed))
