"""Sums over a batch of latents that the cross-modal terms are functions of, and their moving averages.

The sums are all that the terms see of the B×K latents, so they are also all that ranks have to exchange.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CACHE_ELEMENTS = 2**18
"""Latents handled at once on CPU: a megabyte stays in cache, where whole B×K passes would run at memory speed."""


class LatentSums(torch.autograd.Function):
    """Sums over a batch of latents, without a B×K temporary in the forward pass and with one in the backward pass.

    (latents_BK, one_hot_BM, labels_BL, T) → one_hotᵀ a [M, K], labelsᵀ b [L, K] with b = a / (a + T), and the number of
    active latents of each record [B] (no gradient).
    """

    @staticmethod
    def forward(
        ctx: Any, latents_BK: Tensor, one_hot_BM: Tensor, labels_BL: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go through the latents in groups of columns, each read from memory once."""
        ctx.save_for_backward(latents_BK, one_hot_BM, labels_BL)
        ctx.temperature = temperature
        activation_MK = latents_BK.new_empty(one_hot_BM.shape[1], latents_BK.shape[1])
        joint_LK = latents_BK.new_empty(labels_BL.shape[1], latents_BK.shape[1])
        active_B = latents_BK.new_zeros(len(latents_BK))
        for columns in _column_groups(latents_BK):
            group_Bk = latents_BK[:, columns].contiguous()
            activation_MK[:, columns] = one_hot_BM.T @ group_Bk
            active_B += group_Bk.sign().sum(1)
            if labels_BL.shape[1]:
                shifted_Bk = group_Bk + temperature
                joint_LK[:, columns] = labels_BL.T @ torch.div(group_Bk, shifted_Bk, out=shifted_Bk)
        ctx.mark_non_differentiable(active_B)
        return activation_MK, joint_LK, active_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_activation_MK: Tensor, grad_joint_LK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """∂b/∂a = T / (a + T)²."""
        latents_BK, one_hot_BM, labels_BL = ctx.saved_tensors
        if not labels_BL.shape[1]:
            return one_hot_BM @ grad_activation_MK, None, None, None
        grad_BK = torch.empty_like(latents_BK)
        for columns in _column_groups(latents_BK):
            slope_Bk = (latents_BK[:, columns] + ctx.temperature).square_().reciprocal_()
            slope_Bk.mul_(labels_BL @ (grad_joint_LK[:, columns] * ctx.temperature))
            grad_BK[:, columns] = slope_Bk.addmm_(one_hot_BM, grad_activation_MK[:, columns])
        return grad_BK, None, None, None


def _column_groups(latents_BK: Tensor) -> list[slice]:
    n_rows, n_latents = latents_BK.shape
    size = n_latents if latents_BK.is_cuda else max(64, _CACHE_ELEMENTS // max(1, n_rows))
    return [slice(start, start + size) for start in range(0, n_latents, size)]


class Sums(NamedTuple):
    """Sums over records; M counts visual and textual only, never joint views."""

    activation_MK: Tensor
    """Σ a per modality."""
    count_M: Tensor
    """Records per modality."""
    joint_LK: Tensor
    """Σ P(y = l) · b."""
    label_L: Tensor
    """Σ P(y = l)."""


class MovingSums(nn.Module):
    """Exponentially decayed sums over the past batches (a rare latent fires in few of them; one batch would be 0/0).

    Sums and counts decay alike, so their ratio is a mean that needs no start-up correction, and a batch without any
    record of a modality leaves that modality's mean where it was.

    Args:
        n_latents, n_labels: sizes. decay: per step.
    """

    def __init__(self, n_latents: int, n_labels: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        shapes = Sums((2, n_latents), (2,), (n_labels, n_latents), (n_labels,))
        for name, shape in shapes._asdict().items():
            self.register_buffer(name, torch.zeros(shape))

    def advance(self, batch: Sums) -> Sums:
        """Decay the past, add a batch, and return the new sums; the batch's own share carries its gradient."""
        blended = Sums(*(getattr(self, name) * self.decay + value for name, value in batch._asdict().items()))
        for name, value in blended._asdict().items():
            getattr(self, name).copy_(value.detach())
        return blended
