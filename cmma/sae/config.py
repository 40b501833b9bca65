"""What can be configured about a sparse autoencoder and its training. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cmma.checks import at_least, one_of, positive, share, within
from cmma.errors import ConfigError

PENALISED = ("msae", "msae_decoders", "standard", "gated", "jumprelu")
"""Architectures whose sparsity is the price lambda1."""
COUNTED = ("topk", "batchtopk", "matryoshka", "sparc", "group_sparse", "separate_matched", "vl_sae")
"""Architectures whose sparsity is the number k."""
ARCHITECTURES = (*PENALISED, *COUNTED)
REDUCTIONS = ("sum", "mean")
ANY_WEIGHTS = ("balanced", "empirical")
REVIVALS = ("auto", "auxk", "resample", "none")
PENALTIES = ("l0", "tanh")
PRECISIONS = ("float32", "bfloat16")
MOST_MATCHED = 2**14
"""Largest dictionary that is matched: the Hungarian method takes memory n² and time n³."""


@dataclass(frozen=True)
class SAEConfig:
    """One dictionary and its objective. The defaults are the paper's, `docs/paper.md` says where it is silent."""

    arch: str = "msae"
    """One of ARCHITECTURES; `conf/sae/*.yaml` introduces each. The cross-modal terms, attention and adaptive sparsity
    below work on all of them."""
    n_latents: int = 1024
    """Dictionary size K. The paper takes 65,536 for CLIP, 131,072 for LLaVA and 262,144 for Stable Diffusion."""
    k: int = 32
    """Latents kept per record (`batchtopk`, `matryoshka`: on average) by the architectures of COUNTED."""
    initial_l0: float = 32.0
    """Latents active per record at the start. The ReLU architectures set their bias by it: a dictionary that starts
    dense settles in a dense code, which no L1 weight turns into the sparse one."""
    lambda1: float = 1e-3
    """Weight of the L1 norm (Eq. 3), against a squared error that is summed over d. It shrinks an active latent by
    lambda1 / 2, in units in which the pre-activations of a random feature have variance one: the paper's value leaves
    a dense code, sparse ones come from 0.3 to 3."""
    lambda2: float = 5e-4
    """Weight of the cross-modal penalty (Eq. 4), a sum over latents: scale it with n_latents; 0 = off."""
    lambda3: float = 2e-4
    """Weight of the alignment reward (Eq. 6), a sum over latents: scale it with n_latents; 0 = off."""
    tau: float = 0.1
    """Threshold on the product of selectivities that separates cross-modal latents (Eq. 4 and 6)."""
    reduction: str = "sum"
    """sum (as the paper writes it) | mean over latents, which makes lambda2 and lambda3 independent of n_latents."""
    any: str = "balanced"
    """E[a | any input] of Eq. 5: balanced (both modalities count the same) | empirical (by their records)."""
    ema_decay: float = 0.99
    """Decay per step of the moving sums behind selectivity and mutual information."""
    mi_temperature: float = 0.1
    """Activation at which the soft indicator a/(a + T) of Eq. 6 is one half, in standardised units."""
    attention: bool = False
    """Cross-modal attention of the encoder to the other modality's context vectors."""
    attention_rank: int = 16
    """Width of the attention head."""
    adaptive_sparsity: bool = False
    """Each modality has its own target L0. Where lambda1 sets the sparsity a controller drives it there, from
    sae.lambda1 on (take 1); where k does, a record keeps as many latents as the target of its modality."""
    target_l0_visual: float = 32.0
    """Active latents per visual record under adaptive sparsity."""
    target_l0_textual: float = 32.0
    """Active latents per textual record under adaptive sparsity."""
    revive: str = "auto"
    """Against dead latents: auxk (auxiliary reconstruction) | resample (reinitialise) | none | auto (resample for the
    ReLU and gated encoders, none for separate_matched, auxk for the others)."""
    aux_k: int = 64
    """Dead latents per record that take part in the auxiliary reconstruction."""
    lambda_aux: float = 1 / 32
    """Weight of the auxiliary reconstruction error."""
    threshold_decay: float = 0.99
    """Decay per step of the threshold that `batchtopk` and `matryoshka` use outside training."""
    bandwidth: float = 0.05
    """Width of the kernel by which `jumprelu` estimates the gradient of its thresholds, in standardised units."""
    penalty: str = "l0"
    """What lambda1 weighs in `jumprelu`: l0 | tanh, a soft count."""
    tanh_scale: float = 4.0
    """c of tanh(c a), the soft count."""
    prefixes: list[float] = field(default_factory=lambda: [0.0625, 0.125, 0.25, 0.5, 1.0])
    """Shares of the dictionary that `matryoshka` reconstructs from alone, ascending to 1."""
    prefix_weights: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0, 1.0, 1.0])
    """Weight of the reconstruction error of each prefix; falling ones, as [5, 4, 3, 2, 1], favour the coarse."""
    lambda_cross: float = 1.0
    """Weight of the error with which `sparc` reconstructs a record from its partner's latents."""
    lambda_group: float = 0.05
    """Weight of the group norm over the latents of a pair in `group_sparse`."""
    mask: float = 0.1
    """Share of the latents that `group_sparse` hides from both records of a pair in a training step."""

    def __post_init__(self) -> None:
        one_of("sae.arch", self.arch, ARCHITECTURES)
        one_of("sae.reduction", self.reduction, REDUCTIONS)
        one_of("sae.any", self.any, ANY_WEIGHTS)
        one_of("sae.revive", self.revive, REVIVALS)
        one_of("sae.penalty", self.penalty, PENALTIES)
        for name in ("n_latents", "k", "attention_rank", "aux_k"):
            at_least(f"sae.{name}", getattr(self, name), 1)
        for name in ("lambda1", "lambda2", "lambda3", "lambda_aux", "lambda_cross", "lambda_group"):
            at_least(f"sae.{name}", getattr(self, name), 0)
        for name in ("initial_l0", "mi_temperature", "target_l0_visual", "target_l0_textual", "bandwidth",
                     "tanh_scale"):
            positive(f"sae.{name}", getattr(self, name))
        within("sae.tau", self.tau, 0, 1)
        for name in ("ema_decay", "threshold_decay", "mask"):
            share(f"sae.{name}", getattr(self, name))
        self._check_counts()
        self._check_prefixes()
        if self.arch == "separate_matched" and self.n_latents > MOST_MATCHED:
            raise ConfigError(f"sae.n_latents={self.n_latents}: sae.arch=separate_matched matches at most "
                              f"{MOST_MATCHED} latents; take fewer, or another architecture")

    def _check_counts(self) -> None:
        if self.adaptive_sparsity and self.arch in PENALISED and self.lambda1 == 0:
            raise ConfigError("sae.adaptive_sparsity=true needs sae.lambda1 > 0: the controller multiplies it")
        if self.arch in COUNTED:
            names = ("target_l0_visual", "target_l0_textual") if self.adaptive_sparsity else ("k",)
            for name in names:
                if getattr(self, name) > self.n_latents:
                    raise ConfigError(f"sae.{name}={getattr(self, name)} is larger than sae.n_latents="
                                      f"{self.n_latents}; lower it")

    def _check_prefixes(self) -> None:
        ascending = all(low < high for low, high in pairwise([0.0, *self.prefixes]))
        if not (self.prefixes and ascending and self.prefixes[-1] == 1):
            raise ConfigError(f"sae.prefixes={self.prefixes} must ascend from above 0 to 1")
        if len(self.prefix_weights) != len(self.prefixes) or min(self.prefix_weights) <= 0:
            raise ConfigError(f"sae.prefix_weights={self.prefix_weights} must be positive, one for each of "
                              f"sae.prefixes={self.prefixes}")

    @property
    def revival(self) -> str:
        """`revive` with auto resolved: auxk, resample or none."""
        if self.revive != "auto":
            return self.revive
        if self.arch == "separate_matched":
            return "none"
        return "resample" if self.arch in PENALISED and self.arch != "jumprelu" else "auxk"

    @property
    def controls_lambda1(self) -> bool:
        """Adaptive sparsity by moving lambda1."""
        return self.adaptive_sparsity and self.arch in PENALISED

    def kept_latents(self) -> tuple[int, int, int]:
        """Latents that a visual, a textual and any other record keeps, where k sets the sparsity."""
        if not self.adaptive_sparsity:
            return self.k, self.k, self.k
        return max(1, round(self.target_l0_visual)), max(1, round(self.target_l0_textual)), self.k


_COUNTED_ALONE: dict[str, Any] = {"lambda1": 0.0, "lambda2": 0.0, "lambda3": 0.0}
PRESETS: dict[str, dict[str, Any]] = {
    "msae": {},
    "msae_decoders": {},
    "standard": {"lambda2": 0.0, "lambda3": 0.0},
    "gated": {"lambda2": 0.0, "lambda3": 0.0},
    "jumprelu": {"lambda1": 0.3, "lambda2": 0.0, "lambda3": 0.0},
    **dict.fromkeys(COUNTED, _COUNTED_ALONE),
}
"""What each architecture is in the literature, as differences from the defaults. `conf/sae/*.yaml` say the same."""


def preset(arch: str, **overrides: Any) -> SAEConfig:
    """The configuration under which `arch` is known, with overrides: `preset("topk", n_latents=4096, k=16)`.

    Raises:
        ConfigError: unknown architecture, or a broken rule between values.
    """
    one_of("sae.arch", arch, ARCHITECTURES)
    return SAEConfig(arch=arch, **{**PRESETS[arch], **overrides})


@dataclass(frozen=True)
class OptimConfig:
    """How a dictionary is trained: Adam with warm-up and cosine decay, early stopping on held-out FVU."""

    lr: float = 3e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Adam's decay of the gradient mean."""
    beta2: float = 0.999
    """Adam's decay of the squared gradient mean."""
    batch: int = 2048
    """Records per step, over all ranks."""
    epochs: float = 50.0
    """Passes over the training records, at most; `steps` overrides it."""
    order_seed: int = 0
    """The order of the records; runs of a sweep that share it share one pass over the activations."""
    steps: int | None = None
    """Optimiser steps, at most; null = from `epochs`."""
    warmup: int = 100
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    clip: float = 0.0
    """Largest norm of the whole gradient, in units of the loss (which is summed over d); 0 = no clipping."""
    precision: str = "float32"
    """float32 | bfloat16: matrix products in bfloat16; weights, moments and sums of losses stay float32."""
    compile: bool = False
    """torch.compile the training pass of a dense architecture. The first steps take a minute more."""
    accumulate: int = 1
    """Parts of a batch that are computed one after the other: less memory, and the same weights to rounding. The
    moving statistics see whole batches; for that the cross-modal terms cost a second forward pass."""
    patience: int = 10
    """Stop after this many evaluations in a row without a lower held-out FVU; 0 = never."""
    evaluate_every: int = 500
    """Steps between held-out evaluations."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between logged metrics."""
    dead_after: int = 500_000
    """A latent that has not fired for this many records is dead."""
    resample_every: int = 500
    """Steps between resamplings of dead latents (`sae.revive=resample`)."""
    resample_until: float = 0.6
    """Share of the steps after which nothing is resampled any more: new latents need time to settle."""

    def __post_init__(self) -> None:
        positive("optim.lr", self.lr)
        positive("optim.epochs", self.epochs)
        share("optim.beta1", self.beta1)
        share("optim.beta2", self.beta2)
        one_of("optim.precision", self.precision, PRECISIONS)
        for name in ("batch", "accumulate", "evaluate_every", "checkpoint_every", "log_every", "dead_after",
                     "resample_every"):
            at_least(f"optim.{name}", getattr(self, name), 1)
        for name in ("warmup", "clip", "patience"):
            at_least(f"optim.{name}", getattr(self, name), 0)
        within("optim.resample_until", self.resample_until, 0, 1)
        if self.accumulate > self.batch:
            raise ConfigError(f"optim.accumulate={self.accumulate} parts of a batch of {self.batch} would be empty; "
                              "lower it")
        if self.steps is not None:
            at_least("optim.steps", self.steps, 1)

    def total_steps(self, n_records: int) -> int:
        """Optimiser steps for a data set of `n_records` training records."""
        if self.steps is not None:
            return self.steps
        return max(1, -int(-self.epochs * n_records // self.batch))
