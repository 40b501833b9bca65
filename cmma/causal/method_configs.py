"""Options of single trace methods, mounted in `TraceConfig`. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least, one_of, positive, share

MADE_FACTORS = ("shape", "color", "size", "texture", "places")
"""What can be changed in a prompt of the shapes world (`cmma.control.trials.FACTORS`)."""


@dataclass(frozen=True)
class CrossAttentionMapsConfig:
    """Where a diffusion model's cross-attention looks from a word (DAAM; Tang et al. 2023).

    Attributes:
        steps, guidance: denoising steps per image and the weight of classifier-free guidance.
        threshold: share of a map's maximum from which a pixel belongs to the word.
        n_shown: images whose maps the report shows.
    """

    steps: int = 10
    guidance: float = 4.0
    threshold: float = 0.4
    n_shown: int = 3

    def __post_init__(self) -> None:
        positive("trace.cross_attention_maps.steps", self.steps)
        share("trace.cross_attention_maps.threshold", self.threshold)


@dataclass(frozen=True)
class PromptSwapConfig:
    """Which parts of a diffusion model carry a word of the prompt (Basu et al. 2023; LocoGen).

    Attributes:
        factors: what the other prompt says otherwise: `shape`, `color`, `size`, `texture` of one object, or `places`:
            two objects exchanged.
        window: consecutive cross-attentions that read the other prompt; 0 = 3 of 16, in proportion to the depth.
        steps, guidance: denoising steps per image and the weight of classifier-free guidance.
    """

    factors: list[str] = field(default_factory=lambda: ["shape", "color", "places"])
    window: int = 0
    steps: int = 10
    guidance: float = 4.0

    def __post_init__(self) -> None:
        for factor in self.factors:
            one_of("trace.prompt_swap.factors", factor, MADE_FACTORS)
        at_least("trace.prompt_swap.window", self.window, 0)
        positive("trace.prompt_swap.steps", self.steps)


@dataclass(frozen=True)
class HeadTextConfig:
    """What a head of CLIP's image tower writes, in texts (TextSpan; Gandelsman et al. 2024).

    Attributes:
        rank: singular directions of a head's outputs that are kept; 80 in the paper, never more than there are.
        n_texts: texts per head.
        n_layers: last layers whose heads are described.
        template: a text from a label.
    """

    rank: int = 80
    n_texts: int = 10
    n_layers: int = 4
    template: str = "a {}."

    def __post_init__(self) -> None:
        for name in ("rank", "n_texts", "n_layers"):
            positive(f"trace.head_text.{name}", getattr(self, name))


@dataclass(frozen=True)
class SparseConceptsConfig:
    """An image embedding as a sparse non-negative sum of texts (SpLiCE; Bhalla et al. 2024).

    Attributes:
        penalties: λ of ‖C w − z‖² + 2 λ ‖w‖₁, from few nonzeros to many.
        template: a text from a label.
    """

    penalties: list[float] = field(default_factory=lambda: [0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02])
    template: str = "a {}."

    def __post_init__(self) -> None:
        for penalty in self.penalties:
            positive("trace.sparse_concepts.penalties", penalty)
