"""JumpReLU autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cmma.sae.architectures.base import SparseAutoencoder, TrainingPass, some
from cmma.sae.architectures.standard import gaussian_threshold
from cmma.sae.config import SAEConfig
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser

_REVIVED = 0.2
"""Threshold of a revived latent against the first one: its encoder row is as much shorter."""


class JumpReLU(SparseAutoencoder):
    """a = π · 1[π > θ] with a learnt threshold θ ≥ 0 for each latent, first such that `initial_l0` latents are active.

    lambda1 weighs the number of active latents (`penalty=l0`) or Σ tanh(c a) (`penalty=tanh`). Steps have no gradient
    with respect to θ; a rectangle kernel of width `bandwidth` estimates that of their expectation. θ itself is the
    parameter: Adam moves its logarithm too slowly from small values.
    """

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d, standardiser, generator)
        self._first_threshold = gaussian_threshold(config.initial_l0, config.n_latents)
        self.threshold = nn.Parameter(torch.full((config.n_latents,), self._first_threshold))

    def activate(self, pre_BK: Tensor, modality_B: Tensor | None = None, latents_I: Tensor | None = None) -> Tensor:
        """Zero what is not above its threshold."""
        threshold_I = some(self.threshold, latents_I)
        if not torch.is_grad_enabled():
            return pre_BK.mul_(pre_BK > threshold_I)
        latents: Tensor = Jump.apply(pre_BK, threshold_I, self.config.bandwidth)
        return latents

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`."""
        pre_BK = self.pre_activations(h_BD, context_BCD, batch.modality_B)
        latents_BK = self.activate(pre_BK, batch.modality_B)
        if self.config.penalty == "l0":
            sparsity_B = Step.apply(pre_BK, self.threshold, self.config.bandwidth).sum(1, dtype=h_BD.dtype)
        else:
            sparsity_B = (self.config.tanh_scale * latents_BK).tanh().sum(1, dtype=h_BD.dtype)
        return TrainingPass(latents_BK, self.reconstruct(latents_BK, batch.modality_B), sparsity_B)

    def latent_parameters(self) -> list[nn.Parameter]:
        """See `SparseAutoencoder.latent_parameters`."""
        return [*super().latent_parameters(), self.threshold]

    @torch.no_grad()
    def project(self) -> None:
        """See `SparseAutoencoder.project`; thresholds stay above or at zero."""
        super().project()
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def aim(self, latents_I: Tensor, direction_ID: Tensor, norm: float | Tensor) -> None:
        """See `SparseAutoencoder.aim`."""
        super().aim(latents_I, direction_ID, norm)
        self.threshold[latents_I] = _REVIVED * self._first_threshold


class Jump(torch.autograd.Function):
    """π · 1[π > θ], with ∂/∂θ estimated as −(θ/ε) K((π − θ)/ε), K the rectangle of width and height one."""

    @staticmethod
    def forward(ctx: Any, pre_BK: Tensor, threshold_K: Tensor, bandwidth: float) -> Tensor:
        """[B, K], [K], ε → [B, K]."""
        ctx.save_for_backward(pre_BK, threshold_K)
        ctx.bandwidth = bandwidth
        return pre_BK * (pre_BK > threshold_K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BK: Tensor) -> tuple[Tensor, Tensor, None]:
        """To π the exact gradient almost everywhere, to θ the estimate."""
        pre_BK, threshold_K = ctx.saved_tensors
        near_K = (grad_BK * _near(pre_BK, threshold_K, ctx.bandwidth)).sum(0)
        return grad_BK * (pre_BK > threshold_K), -threshold_K / ctx.bandwidth * near_K, None


class Step(torch.autograd.Function):
    """1[π > θ], with ∂/∂θ estimated as −(1/ε) K((π − θ)/ε)."""

    @staticmethod
    def forward(ctx: Any, pre_BK: Tensor, threshold_K: Tensor, bandwidth: float) -> Tensor:
        """[B, K], [K], ε → [B, K]."""
        ctx.save_for_backward(pre_BK, threshold_K)
        ctx.bandwidth = bandwidth
        return (pre_BK > threshold_K).to(pre_BK.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BK: Tensor) -> tuple[None, Tensor, None]:
        """To π nothing, to θ the estimate."""
        pre_BK, threshold_K = ctx.saved_tensors
        return None, -(grad_BK * _near(pre_BK, threshold_K, ctx.bandwidth)).sum(0) / ctx.bandwidth, None


def _near(pre_BK: Tensor, threshold_K: Tensor, bandwidth: float) -> Tensor:
    return (pre_BK - threshold_K).abs() < bandwidth / 2
