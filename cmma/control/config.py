"""What can be configured about controllable generation. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import one_of, positive, share
from cmma.errors import ConfigError

DIMENSIONS = ("object", "style", "attribute", "composition")
TOKENS = ("auto", "visual", "textual")


@dataclass(frozen=True)
class ControlConfig:
    """Change one factor of what a model makes, by dictionary features alone (paper, Table 2).

    The lists are grids: every combination is tried on the selection samples, and per factor the best one is measured
    on the others.

    Attributes:
        split: split of the shapes world that the trials are drawn from.
        dimensions: rows of Table 2: `object` (shape), `style` (texture), `attribute` (colour, size), `composition`
            (two objects change places).
        n_selection: samples for choosing features and settings, the first of the split.
        max_samples: samples that the trials are measured on, the next ones; one trial per sample and factor.
        n_tuning: trials per factor behind the choice of a setting.
        tokens: records that are edited: `textual` (words of the prompt, at the text encoder's layer), `visual` (tokens
            where the object is, at the block of the U-Net or the layer of the language model) or `auto`: whichever of
            the two does better on the selection samples, factor by factor.
        n_features: how many features change together.
        strengths: γ of a' = max(0, a + γ (target − source)), target and source being mean activations: 1 puts the
            wanted value in the place of the one that is there (Eq. 10 with means), more amplifies it (Eq. 9).
        starts: share of the denoising steps that run unedited first; models that make images in steps only.
        n_controls: draws of random features and of random directions.
        steps, guidance: denoising steps per image and the weight of classifier-free guidance.
        max_new_tokens: length limit of captions.
        encoder: the dual encoder (a file in conf/model/) behind the CLIP measures.
        batch_size: samples in one generation batch.
        n_shown: trials per dimension whose images or texts the report shows.
        seed: of the drawn trials, the controls and the resampling.
    """

    split: str = "balanced"
    dimensions: list[str] = field(default_factory=lambda: list(DIMENSIONS))
    n_selection: int = 200
    max_samples: int = 200
    n_tuning: int = 64
    tokens: str = "auto"
    n_features: list[int] = field(default_factory=lambda: [32, 128])
    strengths: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0])
    starts: list[float] = field(default_factory=lambda: [0.0, 0.3, 0.4, 0.5])
    n_controls: int = 2
    steps: int = 10
    guidance: float = 4.0
    max_new_tokens: int = 96
    encoder: str = "toy_clip"
    batch_size: int = 50
    n_shown: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for dimension in self.dimensions:
            one_of("control.dimensions", dimension, DIMENSIONS)
        one_of("control.tokens", self.tokens, TOKENS)
        for name in ("dimensions", "n_features", "strengths", "starts"):
            if not getattr(self, name):
                raise ConfigError(f"control.{name} is empty; name at least one")
        for name in ("n_selection", "max_samples", "n_tuning", "n_controls", "steps", "max_new_tokens", "batch_size"):
            positive(f"control.{name}", getattr(self, name))
        for value in self.starts:
            share("control.starts", value)
        for count in self.n_features:
            positive("control.n_features", count)
