"""What names a model: the schema of `conf/model/*.yaml`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmma.checks import one_of
from cmma.errors import ConfigError

BUILTIN = "builtin:"


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides which model is loaded, and how.

    Attributes:
        name: short name, as in `model=NAME`.
        family: the adapter: `llava` (LLaVA-1.5 and LLaVA-NeXT), `clip` (open_clip), `blip` (BLIP's question
            answering) or `stable_diffusion`.
        weights: `hub` (download or use the local cache), `path` (a local folder) or `random` (the full architecture
            with seeded random weights, fully offline).
        source: hub id, folder, or `builtin:NAME` for the models that ship with cmma.
        revision: hub revision; null = the default branch.
        architecture: name by which the adapter knows the architecture without any file, for `weights=random`.
        n_layers: layers of the stream that records are taken from (the language model; the towers of a dual encoder;
            the question encoder of a BLIP; the transformer blocks of a U-Net).
        cached_layers: layers that are cached where `activations.layers` names none; null = at a quarter, a half and
            three quarters of the depth. For models whose layers cannot all be cached together.
        dtype: float32, bfloat16 or float16 in memory.
        attention: sdpa or eager.
        prompt: instruction that asks for a caption; empty where a model answers questions only.
        drop_system_prompt: leave the tokens before the image out of the records.
        seed: of random weights.
    """

    name: str = "toy_llava"
    family: str = "llava"
    weights: str = "path"
    source: str = "builtin:toy_llava"
    revision: str | None = None
    architecture: str | None = None
    n_layers: int = 12
    cached_layers: list[int] | None = None
    dtype: str = "float32"
    attention: str = "sdpa"
    prompt: str = "describe the image."
    drop_system_prompt: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for key, allowed in (
            ("family", ("llava", "clip", "blip", "stable_diffusion")), ("weights", ("hub", "path", "random")),
            ("dtype", ("float32", "bfloat16", "float16")), ("attention", ("sdpa", "eager")),
        ):
            one_of(f"model.{key}", getattr(self, key), allowed)
        if self.weights == "random" and not self.architecture:
            raise ConfigError(f"model.weights=random needs model.architecture, which {self.name} does not give")


def model_folder(source: str) -> Path:
    """The folder behind a local `source`: `builtin:NAME` is a model that ships with cmma. It need not exist."""
    if source.startswith(BUILTIN):
        return Path(__file__).resolve().parent.parent / "testbed" / "weights" / source.removeprefix(BUILTIN)
    return Path(source).expanduser().absolute()
