"""Sums over a batch of latents that the cross-modal terms are functions of, and their moving averages.

The sums are all that the terms see of the B×K latents, so they are also all that ranks have to exchange.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cmma.modality import Modality
from cmma.sae.kernels.sparse import SparseLatents, scatter_sum
from cmma.sae.objective.information import label_distribution, soft_indicator
from cmma.sae.standardiser import modality_one_hot

_GROUP = {"cpu": 2**20, "cuda": 2**26}
"""Elements of B×K matrices that are handled at once. On CPU: four megabytes mostly stay in cache, whole B×K passes run
at memory speed. On a GPU: what keeps it busy, and no temporary of the size of B×K."""


class Conditions(NamedTuple):
    """What activations are summed by."""

    one_hot_BM: Tensor
    """Modality."""
    label_BL: Tensor
    """Each record's distribution over its labels, zero for a joint view; L is 0 without labels."""
    temperature: float
    """T of the soft indicator b = a / (a + T)."""


def conditions(modality_B: Tensor, labels_BL: Tensor | None, temperature: float, dtype: torch.dtype) -> Conditions:
    """Modality codes [B] and multi-hot labels [B, L], or None, as what activations are summed by."""
    one_hot_BM = modality_one_hot(modality_B, dtype)
    if labels_BL is None:
        return Conditions(one_hot_BM, one_hot_BM.new_zeros(len(one_hot_BM), 0), temperature)
    counted_B = one_hot_BM[:, Modality.VISUAL] + one_hot_BM[:, Modality.TEXTUAL]
    return Conditions(one_hot_BM, label_distribution(labels_BL, counted_B), temperature)


class LatentSums(NamedTuple):
    """All that the objective sees of a batch of latents."""

    activation_MK: Tensor
    """one_hotᵀ a."""
    joint_LK: Tensor
    """labelᵀ b."""
    active_B: Tensor
    """Active latents of each record; no gradient."""


def latent_sums(latents_BK: Tensor | SparseLatents, by: Conditions) -> LatentSums:
    """Sum latents over a batch; without a B×K temporary in the forward pass, and with one, or none, in the backward."""
    if isinstance(latents_BK, Tensor):
        return LatentSums(*_DenseSums.apply(latents_BK, *by))
    on = latents_BK._replace(values_Bk=soft_indicator(latents_BK.values_Bk, by.temperature))
    return LatentSums(scatter_sum(latents_BK, by.one_hot_BM).T, scatter_sum(on, by.label_BL).T,
                      latents_BK.values_Bk.detach().sign().sum(1))


def relu_and_sums(pre_BK: Tensor, by: Conditions) -> tuple[Tensor, LatentSums]:
    """ReLU in place, and the sums of what comes out; both go through memory once, and once more in the backward pass.

    The gradient that arrives at the latents is overwritten: hand them to one function alone, whose backward pass makes
    a new tensor, as that of a matrix product does.
    """
    latents_BK, *sums = _ReluSums.apply(pre_BK, *by)
    return latents_BK, LatentSums(*sums)


class _DenseSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents_BK: Tensor, *by: Any) -> tuple[Tensor, ...]:
        ctx.by = Conditions(*by)
        ctx.save_for_backward(latents_BK)
        sums = _sum_groups(latents_BK, ctx.by)
        ctx.mark_non_differentiable(sums.active_B)
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_activation_MK: Tensor, grad_joint_LK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        latents_BK, = ctx.saved_tensors
        grad_BK = torch.empty_like(latents_BK)
        for columns in _column_groups(latents_BK):
            grad_BK[:, columns] = _group_gradient(
                latents_BK[:, columns], grad_activation_MK[:, columns], grad_joint_LK[:, columns], ctx.by)
        return grad_BK, None, None, None


class _ReluSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BK: Tensor, *by: Any) -> tuple[Tensor, ...]:
        ctx.by = Conditions(*by)
        sums = _sum_groups(pre_BK, ctx.by, rectify=True)
        ctx.mark_dirty(pre_BK)
        ctx.save_for_backward(pre_BK)
        ctx.mark_non_differentiable(sums.active_B)
        return pre_BK, *sums

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_BK: Tensor, grad_activation_MK: Tensor, grad_joint_LK: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        latents_BK, = ctx.saved_tensors
        for columns in _column_groups(latents_BK):
            group_Bk = latents_BK[:, columns]
            grad_Bk = _group_gradient(group_Bk, grad_activation_MK[:, columns], grad_joint_LK[:, columns], ctx.by)
            grad_BK[:, columns].add_(grad_Bk).masked_fill_(group_Bk == 0, 0)
        return grad_BK, None, None, None


def _sum_groups(latents_BK: Tensor, by: Conditions, rectify: bool = False) -> LatentSums:
    """Go through the latents in groups of columns, each read from memory once; `rectify` in place on the way."""
    n_latents = latents_BK.shape[1]
    sums = LatentSums(by.one_hot_BM.new_empty(by.one_hot_BM.shape[1], n_latents),
                      by.one_hot_BM.new_empty(by.label_BL.shape[1], n_latents),
                      by.one_hot_BM.new_zeros(len(latents_BK)))
    for columns in _column_groups(latents_BK):
        group_Bk = latents_BK[:, columns]
        if rectify:
            group_Bk.relu_()
        group_Bk = group_Bk.to(by.one_hot_BM.dtype)
        torch.mm(by.one_hot_BM.T, group_Bk, out=sums.activation_MK[:, columns])
        sums.active_B.add_(group_Bk.sign().sum(1))
        if len(sums.joint_LK):
            shifted_Bk = group_Bk + by.temperature
            on_Bk = torch.div(group_Bk, shifted_Bk, out=shifted_Bk)
            torch.mm(by.label_BL.T, on_Bk, out=sums.joint_LK[:, columns])
    return sums


def _group_gradient(latents_Bk: Tensor, grad_activation_Mk: Tensor, grad_joint_Lk: Tensor, by: Conditions) -> Tensor:
    """The gradient of a group of columns, with ∂b/∂a = T / (a + T)²."""
    grad_Bk = by.one_hot_BM @ grad_activation_Mk
    if len(grad_joint_Lk):
        shifted_Bk = latents_Bk + by.temperature
        grad_Bk.addcdiv_(by.label_BL @ grad_joint_Lk, shifted_Bk.square_(), value=by.temperature)
    return grad_Bk


def _column_groups(latents_BK: Tensor) -> list[slice]:
    n_rows, n_latents = latents_BK.shape
    size = max(64, _GROUP[latents_BK.device.type] // max(1, n_rows))
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
