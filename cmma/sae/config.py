"""What can be configured about a sparse autoencoder and its training. Plain dataclasses: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cmma.checks import at_least, one_of, positive, share, within
from cmma.errors import ConfigError

ARCHITECTURES = ("msae", "standard", "topk")
REDUCTIONS = ("sum", "mean")
ANY_WEIGHTS = ("balanced", "empirical")
REVIVALS = ("auto", "auxk", "resample", "none")


@dataclass(frozen=True)
class SAEConfig:
    """One dictionary and its objective. The defaults are the paper's, `docs/paper.md` says where it is silent."""

    arch: str = "msae"
    """msae (ReLU, Eq. 1-6) | standard (ReLU + L1) | topk. Every term below works on each of them."""
    n_latents: int = 1024
    """Dictionary size K. The paper takes 65,536 for CLIP, 131,072 for LLaVA and 262,144 for Stable Diffusion."""
    k: int = 32
    """Latents kept per record. Only `topk` reads it."""
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
    """Drive lambda1 of each modality by a controller to its target L0; lambda1 is then the starting value (take 1)."""
    target_l0_visual: float = 32.0
    """Active latents per visual record that the controller aims at."""
    target_l0_textual: float = 32.0
    """Active latents per textual record that the controller aims at."""
    revive: str = "auto"
    """Against dead latents: auxk (auxiliary reconstruction) | resample (reinitialise) | none | auto (auxk for topk,
    resample for the ReLU architectures)."""
    aux_k: int = 64
    """Dead latents per record that take part in the auxiliary reconstruction."""
    lambda_aux: float = 1 / 32
    """Weight of the auxiliary reconstruction error."""

    def __post_init__(self) -> None:
        one_of("sae.arch", self.arch, ARCHITECTURES)
        one_of("sae.reduction", self.reduction, REDUCTIONS)
        one_of("sae.any", self.any, ANY_WEIGHTS)
        one_of("sae.revive", self.revive, REVIVALS)
        for name in ("n_latents", "k", "attention_rank", "aux_k"):
            at_least(f"sae.{name}", getattr(self, name), 1)
        for name in ("lambda1", "lambda2", "lambda3", "lambda_aux"):
            at_least(f"sae.{name}", getattr(self, name), 0)
        for name in ("initial_l0", "mi_temperature", "target_l0_visual", "target_l0_textual"):
            positive(f"sae.{name}", getattr(self, name))
        within("sae.tau", self.tau, 0, 1)
        share("sae.ema_decay", self.ema_decay)
        if self.arch == "topk" and self.k > self.n_latents:
            raise ConfigError(f"sae.k={self.k} is larger than sae.n_latents={self.n_latents}; lower sae.k")
        if self.adaptive_sparsity and self.arch == "topk":
            raise ConfigError("sae.adaptive_sparsity=true does nothing for sae.arch=topk, whose L0 is sae.k; drop it")
        if self.adaptive_sparsity and self.lambda1 == 0:
            raise ConfigError("sae.adaptive_sparsity=true needs sae.lambda1 > 0: the controller multiplies it")

    @property
    def revival(self) -> str:
        """`revive` with auto resolved: auxk, resample or none."""
        if self.revive != "auto":
            return self.revive
        return "auxk" if self.arch == "topk" else "resample"


PRESETS: dict[str, dict[str, Any]] = {
    "msae": {},
    "standard": {"lambda2": 0.0, "lambda3": 0.0},
    "topk": {"lambda1": 0.0, "lambda2": 0.0, "lambda3": 0.0},
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
    steps: int | None = None
    """Optimiser steps, at most; null = from `epochs`."""
    warmup: int = 100
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    clip: float = 0.0
    """Largest norm of the whole gradient, in units of the loss (which is summed over d); 0 = no clipping."""
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
        for name in ("batch", "evaluate_every", "checkpoint_every", "log_every", "dead_after", "resample_every"):
            at_least(f"optim.{name}", getattr(self, name), 1)
        for name in ("warmup", "clip", "patience"):
            at_least(f"optim.{name}", getattr(self, name), 0)
        within("optim.resample_until", self.resample_until, 0, 1)
        if self.steps is not None:
            at_least("optim.steps", self.steps, 1)

    def total_steps(self, n_records: int) -> int:
        """Optimiser steps for a data set of `n_records` training records."""
        if self.steps is not None:
            return self.steps
        return max(1, -int(-self.epochs * n_records // self.batch))
