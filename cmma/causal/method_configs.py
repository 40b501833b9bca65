"""Options of single trace methods, mounted in `TraceConfig`. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least, one_of, positive, share
from cmma.errors import ConfigError

MODULES = ("residual", "mlp", "attention", "self_attention", "cross_attention", "head", "cross_head")


@dataclass(frozen=True)
class KnockoutConfig:
    """Attention knockout (information flow).

    Attributes:
        flows: "source->target" groups whose attention is blocked, such as "image->question"; empty = every flow that
            the model has (docs/causal.md).
        window: layers blocked together, centred on each layer; 0 = 9 of 32, in proportion to the model's depth.
    """

    flows: list[str] = field(default_factory=list)
    window: int = 0

    def __post_init__(self) -> None:
        at_least("trace.knockout.window", self.window, 0)
        for flow in self.flows:
            if flow.count("->") != 1:
                raise ConfigError(f"trace.knockout.flows holds {flow!r}; a flow is source->target: image->question")


@dataclass(frozen=True)
class SAEAttributionConfig:
    """Attribution of the readout to every feature of a dictionary, checked by ablation.

    Attributes:
        steps: 1 = the gradient at the activations, one backward pass; more = integrated gradients.
        tokens: whose latents are ablated: `all`, `visual` or `textual`.
        verify: features of largest attribution that are then really ablated, on other images.
        random: other live features, drawn at random, that are ablated too: they show what the screen misses.
        top: of the largest exact effects, the share that the screen finds is estimated (recall).
        batch_size: queries in one pass.
    """

    steps: int = 1
    tokens: str = "all"
    verify: int = 32
    random: int = 64
    top: int = 16
    batch_size: int = 8

    def __post_init__(self) -> None:
        one_of("trace.sae_attribution.tokens", self.tokens, ("all", "visual", "textual"))
        for name in ("steps", "verify", "random", "top", "batch_size"):
            positive(f"trace.sae_attribution.{name}", getattr(self, name))
        if self.top > self.verify:
            raise ConfigError(
                f"trace.sae_attribution.top={self.top} exceeds verify={self.verify}, the features that are checked"
            )


@dataclass(frozen=True)
class LogitLensConfig:
    """What the layers' states would say, and how confidently the image's tokens name objects.

    Attributes:
        words: object words whose internal confidence is measured; empty = the shape words of the shapes world, and
            none elsewhere. A word counts as present where it is among the sample's labels.
        captions: also write captions, and hold the confidence of true mentions against that of hallucinated ones.
        max_new_tokens: length limit of those captions.
        batch_size: samples in one pass.
    """

    words: list[str] = field(default_factory=list)
    captions: bool = True
    max_new_tokens: int = 96
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            positive(f"trace.logit_lens.{name}", getattr(self, name))


@dataclass(frozen=True)
class AttributionConfig:
    """Attribution patching: an estimate of activation patching, checked against it.

    Attributes:
        corruption: what makes the corrupt run: `semantic_pair`, `token_replacement` or `noise`.
        modules: what is restored, one map each; as `trace.module`, with `head` for every single head.
        steps: 1 = the derivative in the corrupt run; more = its mean on the way to the clean one
            (EAP-IG takes 5 to 30).
        edges: also what each module says to each later one, where the stream's modules add to it (LLaVA, CLIP).
        exact: cases on which every cell and edge is also patched; 0 = none.
        top: largest cells (edges) whose recall by the estimate is measured.
    """

    corruption: str = "semantic_pair"
    modules: list[str] = field(default_factory=lambda: ["residual", "mlp", "attention"])
    steps: int = 1
    edges: bool = True
    exact: int = 16
    top: int = 20

    def __post_init__(self) -> None:
        one_of("trace.attribution.corruption", self.corruption, ("semantic_pair", "token_replacement", "noise"))
        for module in self.modules:
            one_of("trace.attribution.modules", module, MODULES)
        at_least("trace.attribution.exact", self.exact, 0)
        for name in ("steps", "top"):
            positive(f"trace.attribution.{name}", getattr(self, name))


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
