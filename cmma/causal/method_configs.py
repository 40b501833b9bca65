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


PAIR_FACTORS = ("shape", "color", "size", "texture", "position", "presence")
"""Factors of the shapes world's image pairs, each a task of its own."""

COUNTERFACTUAL_SETS = ("relation", "referent", "count", "negation", "logic")
"""Pairs of questions about one image that differ in one constraint (docs/testbed.md)."""

MODALITIES = ("image", "text")
"""What is corrupted: the image (semantic image pairs) or the question (symmetric token replacement)."""


@dataclass(frozen=True)
class ConstraintWindowConfig:
    """MultimodalCausalTrace (Basu et al. 2024): how wide a window of layers must be to bring the answer back.

    Attributes:
        widths: numbers of layers restored together; those above the depth of the stream are left out.
        one: counterfactual sets whose questions hold one constraint, which is replaced.
        two: sets whose questions hold two constraints, one of which is replaced.
        shares: shares of the total effect; for each the smallest width that recovers it is looked for.
    """

    widths: list[int] = field(default_factory=lambda: [1, 3, 6, 9])
    one: list[str] = field(default_factory=lambda: ["count"])
    two: list[str] = field(default_factory=lambda: ["referent", "relation"])
    shares: list[float] = field(default_factory=lambda: [0.5, 0.9])

    def __post_init__(self) -> None:
        for width in self.widths:
            positive("trace.constraint_window.widths", width)
        for kind in (*self.one, *self.two):
            one_of("trace.constraint_window.one, two", kind, COUNTERFACTUAL_SETS)
        if not self.widths or not (self.one or self.two):
            raise ConfigError("trace.constraint_window needs at least one width, and a set in `one` or `two`")


@dataclass(frozen=True)
class UniversalHeadsConfig:
    """Heads that matter in every task and for either corruption (NOTICE; Golovanevsky et al. 2024).

    Attributes:
        tasks: factors of the image pairs, each a task. In each the questions of one half of the pairs have their image
            swapped and those of the other half a token, so that the two modalities share no sample.
        n_sigmas: a head is important in a task where its |recovery| is at least mean + n_sigmas · σ over the heads.
        min_tasks: tasks in which a universal head is important, in both modalities; 0 = all of them.
        per_task: pairs per task and modality, from the first.
        n_permutations: draws of the chance overlap.
    """

    tasks: list[str] = field(default_factory=lambda: list(PAIR_FACTORS))
    n_sigmas: float = 2.0
    min_tasks: int = 0
    per_task: int = 24
    n_permutations: int = 10_000

    def __post_init__(self) -> None:
        for task in self.tasks:
            one_of("trace.universal_heads.tasks", task, PAIR_FACTORS)
        for name in ("n_sigmas", "per_task", "n_permutations"):
            positive(f"trace.universal_heads.{name}", getattr(self, name))
        if not 0 <= self.min_tasks <= len(self.tasks) or not self.tasks:
            raise ConfigError(
                f"trace.universal_heads.min_tasks={self.min_tasks} must lie between 0 and the number of tasks, "
                f"{len(self.tasks)}"
            )


@dataclass(frozen=True)
class FactorSwapConfig:
    """The changed object's patches taken from the other image of a pair.

    Attributes:
        differing: questions per pair whose answer is another on the other image, at most; they should flip.
        agreeing: questions per pair whose answer is the same on both, at most; they should not change.
    """

    differing: int = 3
    agreeing: int = 4

    def __post_init__(self) -> None:
        for name in ("differing", "agreeing"):
            positive(f"trace.factor_swap.{name}", getattr(self, name))
