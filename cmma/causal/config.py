"""What can be configured about tracing and interventions. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.causal.method_configs import (
    COUNTERFACTUAL_SETS,
    MODULES,
    AttributionConfig,
    ConstraintWindowConfig,
    CrossAttentionMapsConfig,
    FactorSwapConfig,
    HeadTextConfig,
    KnockoutConfig,
    LogitLensConfig,
    PromptSwapConfig,
    SAEAttributionConfig,
    SparseConceptsConfig,
    UniversalHeadsConfig,
)
from cmma.checks import one_of, positive
from cmma.errors import ConfigError

REPLACEMENTS = ("pair", *COUNTERFACTUAL_SETS)
TRACE_METHODS = (
    "noise", "semantic_pair", "token_replacement", "knockout", "attribution", "sae_attribution", "logit_lens",
    "cross_attention_maps", "prompt_swap", "head_text", "sparse_concepts", "constraint_window", "universal_heads",
    "corruptions", "factor_swap",
)  # fmt: skip
WITH_DICTIONARY: tuple[str, ...] = ("sae_attribution",)
"""Methods that look at the features of a dictionary; the others need none."""
ANSWER_READOUTS = ("logit_difference", "log_probability", "probability", "first_token_probability")
READOUTS = ("auto", *ANSWER_READOUTS, "cosine", "denoising")
SOURCES = ("mean", "aligned")
INTERVENTIONS = ("ablate", "amplify", "substitute", "combine", "clamp")


@dataclass(frozen=True)
class NoiseConfig:
    """Gaussian corruption of the image embeddings.

    Attributes:
        style: `additive` is e + N(0, (scale · σ)²), σ the standard deviation of the embeddings over the data (ROME);
            `multiplicative` is e · N(1, scale²) (the BLIP tool, which takes scale 5).
        scale: multiple of σ, or the standard deviation of the factor.
        draws: noise tensors per sample; the scores of a sample are averaged over them. ROME takes 10.
        site: where the noise enters; empty = the image's embeddings as the rest of the model gets them: the projector's
            output, the vision tower's where cross-attention reads it, the first vision layer in a dual encoder.
    """

    style: str = "additive"
    scale: float = 3.0
    draws: int = 3
    site: str = ""

    def __post_init__(self) -> None:
        one_of("trace.noise.style", self.style, ("additive", "multiplicative"))
        positive("trace.noise.scale", self.scale)
        positive("trace.noise.draws", self.draws)


@dataclass(frozen=True)
class TraceConfig:
    """One causal trace: how the input is corrupted, what is restored, what is measured.

    Attributes:
        method: what is done (`conf/trace/`): a clean activation restored after `noise`, a `semantic_pair` or a
            `token_replacement`, or another method, which says below what it reads of these options.
        split: split of the data set that is run; pairs need a split of pairs.
        replacement: what `token_replacement` swaps in the question: `pair` takes the question of an image pair, the
            others one of the shapes world's counterfactual sets (docs/testbed.md).
        module: what is restored at a layer: `residual` (the stream after it); what a module adds: `mlp`, `attention`
            (self-attention; in a U-Net the attention that reads the text), `self_attention`, `cross_attention`; or one
            head at a time of an attention: `head`, `cross_head`.
        window: layers restored together, centred on the row's layer. ROME takes 10 for mlp and attention.
        stream: tower that is patched: `language`; `vision` or `text` where there are two; `decoder`, which writes the
            answer where the question has an encoder; `unet` of a diffusion model. Empty = language, vision in a dual
            encoder, text in a BLIP and a diffusion model.
        layers: rows of the trace; null = every layer of the stream.
        image_positions: image patches as groups: `objects` (by mask; whole without one), `each`, `whole` or `none`.
        text_positions: prompt tokens after the image: `each` (counted back from the last), `whole`, `constraint` (the
            words that a token replacement changes, and the others) or `none`. The last token is a group in any case.
        positions: names of the position groups that are restored; `everything` is all positions together. Empty = all
            groups; for single heads, `everything`.
        readout: `auto` = probability for noise, logit_difference for pairs, cosine for a dual encoder,
            denoising (minus the error) for a diffusion model.
        max_samples: samples (or pairs) used, from the first.
        correct_only: keep the cases that the model answers right before corruption.
        rows_per_forward: cells that share one forward pass; changes the speed, not the result.
        noise: the corruption of method `noise`; `corruptions` takes its number of draws and its site.
        constraint_window, universal_heads, factor_swap: options of those methods.
        knockout: of method `knockout`, which also reads split, layers (centres of its windows), readout (`auto` =
            first_token_probability), max_samples, correct_only and rows_per_forward.
        attribution: of method `attribution`, which reads of the others what its corruption reads.
        sae_attribution: of method `sae_attribution`, which also reads split, readout (`auto` = logit_difference from
            the wrong answer that the clean model likes best), max_samples and correct_only.
        logit_lens: of method `logit_lens`, which also reads split, layers, max_samples and correct_only.
        cross_attention_maps, prompt_swap, head_text, sparse_concepts: options of those methods, which also read split,
            max_samples, rows_per_forward and seed.
        seed: of the noise and of the resampling.
    """

    method: str = "noise"
    split: str = "balanced"
    replacement: str = "pair"
    module: str = "residual"
    window: int = 1
    stream: str = ""
    layers: list[int] | None = None
    image_positions: str = "objects"
    text_positions: str = "each"
    positions: list[str] = field(default_factory=list)
    readout: str = "auto"
    max_samples: int = 64
    correct_only: bool = True
    rows_per_forward: int = 64
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    knockout: KnockoutConfig = field(default_factory=KnockoutConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    sae_attribution: SAEAttributionConfig = field(default_factory=SAEAttributionConfig)
    logit_lens: LogitLensConfig = field(default_factory=LogitLensConfig)
    cross_attention_maps: CrossAttentionMapsConfig = field(default_factory=CrossAttentionMapsConfig)
    prompt_swap: PromptSwapConfig = field(default_factory=PromptSwapConfig)
    head_text: HeadTextConfig = field(default_factory=HeadTextConfig)
    sparse_concepts: SparseConceptsConfig = field(default_factory=SparseConceptsConfig)
    constraint_window: ConstraintWindowConfig = field(default_factory=ConstraintWindowConfig)
    universal_heads: UniversalHeadsConfig = field(default_factory=UniversalHeadsConfig)
    factor_swap: FactorSwapConfig = field(default_factory=FactorSwapConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("trace.method", self.method, TRACE_METHODS)
        one_of("trace.replacement", self.replacement, REPLACEMENTS)
        one_of("trace.module", self.module, MODULES)
        one_of("trace.stream", self.stream, ("", "language", "vision", "text", "decoder", "unet"))
        one_of("trace.image_positions", self.image_positions, ("objects", "each", "whole", "none"))
        one_of("trace.text_positions", self.text_positions, ("each", "whole", "constraint", "none"))
        one_of("trace.readout", self.readout, READOUTS)
        for name in ("window", "max_samples", "rows_per_forward"):
            positive(f"trace.{name}", getattr(self, name))
        if self.window > 1 and self.module in ("head", "cross_head"):
            raise ConfigError(
                f"trace.window={self.window} restores layers together, and a head has no counterpart in other layers; "
                "take trace.window=1"
            )
        if self.method == "noise" and self.readout == "logit_difference":
            raise ConfigError(
                "trace.readout=logit_difference needs the second answer of a pair, which trace.method=noise has not; "
                "take probability or log_probability"
            )


@dataclass(frozen=True)
class SelectionConfig:
    """Which features to intervene on: by attribution, on samples that the effect is never measured on.

    Attributes:
        n_samples: samples for choosing, the first of the split.
        steps: 1 = the gradient at the activations, one backward pass; more = integrated gradients.
        verify: candidates of highest attribution that are then really ablated; the ranking is by that.
    """

    n_samples: int = 64
    steps: int = 1
    verify: int = 32

    def __post_init__(self) -> None:
        for name in ("n_samples", "steps", "verify"):
            positive(f"intervention.selection.{name}", getattr(self, name))


@dataclass(frozen=True)
class InterventionConfig:
    """One intervention on dictionary features with its controls (paper, Eq. 8-11).

    Attributes:
        kind: `ablate` (Eq. 8), `amplify` (Eq. 9), `substitute` (Eq. 10), `combine` (Eq. 11) or `clamp` (to a value).
        strength: amplify: the factor α; combine: the weight β of the sample's own activation; clamp: the value.
            Ablation and substitution have none.
        strengths: further values of `strength` for a dose-response curve; empty = no curve.
        split: split of the data set that the features are selected and the effect is measured on, on disjoint samples.
        features: features chosen by hand; null = the first `n_features` of the selection.
        n_features: how many of the selected features are intervened on together.
        tokens: whose activations change: `all`, `visual` or `textual`.
        phase: when, during generation: `all`, `prefill` (the prompt) or `decode` (the new tokens).
        source: substitute and combine take the other sample's activations as their `mean` over its tokens, one value
            per feature, or `aligned` position by position (samples whose tokens correspond, such as image pairs).
        keep_error: pass the dictionary's reconstruction error through: h' = h + decode(a') - decode(a).
        readout: `auto` = logit_difference from the wrong answer that the clean model likes best (log_probability where
            there is no other answer), cosine for a dual encoder, denoising for a diffusion model.
        n_controls: draws of random features (matched in density) and of random directions (equal in norm).
        max_samples: samples that the effect is measured on.
        batch_size: samples in one forward pass.
        generate: also make texts or images with and without the intervention, and under one control each.
        max_new_tokens: length limit of those texts.
        n_images: how many images a diffusion model makes, from the first captions.
        image_steps, guidance: denoising steps per image and the weight of classifier-free guidance.
        encoder: name of the dual encoder (a file in conf/model/) behind the CLIP-Score of what is made.
        selection: how features are selected.
        seed: of the controls and of the resampling.
    """

    kind: str = "ablate"
    strength: float = 0.0
    strengths: list[float] = field(default_factory=list)
    split: str = "balanced"
    features: list[int] | None = None
    n_features: int = 8
    tokens: str = "all"
    phase: str = "all"
    source: str = "mean"
    keep_error: bool = True
    readout: str = "auto"
    n_controls: int = 8
    max_samples: int = 64
    batch_size: int = 16
    generate: bool = True
    max_new_tokens: int = 48
    n_images: int = 16
    image_steps: int = 10
    guidance: float = 4.0
    encoder: str = "toy_clip"
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("intervention.kind", self.kind, INTERVENTIONS)
        one_of("intervention.tokens", self.tokens, ("all", "visual", "textual"))
        one_of("intervention.phase", self.phase, ("all", "prefill", "decode"))
        one_of("intervention.source", self.source, SOURCES)
        one_of("intervention.readout", self.readout, READOUTS)
        for name in (
            "n_features", "n_controls", "max_samples", "batch_size", "max_new_tokens", "n_images", "image_steps"
        ):
            positive(f"intervention.{name}", getattr(self, name))
        if self.kind == "combine" and not all(0 <= beta <= 1 for beta in (self.strength, *self.strengths)):
            raise ConfigError(f"intervention.strength={self.strength} is the weight β of Eq. 11 and lies in [0, 1]")
