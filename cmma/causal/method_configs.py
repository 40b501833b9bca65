"""Options of single trace methods, mounted in `TraceConfig`. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least, one_of, positive
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
