"""Sums over a batch of latents that the cross-modal terms are functions of, and their moving averages.

The sums are all that the terms see of the B×K latents, so they are also all that ranks have to exchange.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cmma.sae.kernels.sparse import SparseLatents, scatter_sum
from cmma.sae.objective.information import soft_indicator

_CACHE_ELEMENTS = 2**20
"""Latents handled at once on CPU: four megabytes mostly stay in cache, whole B×K passes run at memory speed."""


def latent_sums(
    latents_BK: Tensor | SparseLatents, one_hot_BM: Tensor, labels_BL: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What the objective sees of a batch of latents.

    Returns:
        one_hotᵀ a, [M, K]; labelsᵀ b, [L, K], with b = a / (a + T); active latents of each record, [B] (no gradient).
    """
    if isinstance(latents_BK, Tensor):
        dense: tuple[Tensor, Tensor, Tensor] = LatentSums.apply(latents_BK, one_hot_BM, labels_BL, temperature)
        return dense
    on = latents_BK._replace(values_Bk=soft_indicator(latents_BK.values_Bk, temperature))
    return (scatter_sum(latents_BK, one_hot_BM).T, scatter_sum(on, labels_BL).T,
            latents_BK.values_Bk.detach().sign().sum(1))


class LatentSums(torch.autograd.Function):
    """`latent_sums` of dense latents, without a B×K temporary in the forward pass and with one in the backward pass."""

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
            group_Bk = latents_BK[:, columns]
            torch.mm(one_hot_BM.T, group_Bk, out=activation_MK[:, columns])
            active_B += group_Bk.sign().sum(1)
            if labels_BL.shape[1]:
                shifted_Bk = group_Bk + temperature
                torch.mm(labels_BL.T, torch.div(group_Bk, shifted_Bk, out=shifted_Bk), out=joint_LK[:, columns])
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
            group_Bk = torch.mm(one_hot_BM, grad_activation_MK[:, columns], out=grad_BK[:, columns])
            shifted_Bk = latents_BK[:, columns] + ctx.temperature
            group_Bk.addcdiv_(labels_BL @ grad_joint_LK[:, columns], shifted_Bk.square_(), value=ctx.temperature)
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

    Only the current batch's share carries a gradient. It is scaled so that the gradient of a moving mean is that of the
    batch's own mean, an unbiased estimate for the population; unscaled it would be 1 − decay of it, and the decay would
    silently rescale lambda2 and lambda3.

    Args:
        n_latents, n_labels: sizes. decay: per step.
    """

    activation_MK: Tensor
    count_M: Tensor
    joint_LK: Tensor
    label_L: Tensor

    def __init__(self, n_latents: int, n_labels: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        shapes = ((2, n_latents), (2,), (n_labels, n_latents), (n_labels,))
        for name, shape in zip(Sums._fields, shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape))

    def advance(self, batch: Sums) -> Sums:
        """Decay the past, add a batch, and return the new sums with the batch's gradient."""
        with torch.no_grad():
            for name, value in batch._asdict().items():
                getattr(self, name).mul_(self.decay).add_(value)
        count_M, label_L = self.count_M.clone(), self.label_L.clone()
        share_M1 = (count_M / batch.count_M.clamp_min(1))[:, None]
        share = label_L.sum() / batch.label_L.sum().clamp_min(1)
        return Sums(
            self.activation_MK + share_M1 * (batch.activation_MK - batch.activation_MK.detach()), count_M,
            self.joint_LK + share * (batch.joint_LK - batch.joint_LK.detach()), label_L,
        )
