"""The whole objective of a training step (paper, Eq. 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmma.modality import Modality
from cmma.sae.config import SAEConfig
from cmma.sae.kernels.sparse import SparseLatents
from cmma.sae.mesh import Mesh
from cmma.sae.objective.information import mutual_information
from cmma.sae.objective.losses import alignment, cross_penalty, sparsity, squared_error
from cmma.sae.objective.selectivity import Selectivity, selectivity
from cmma.sae.objective.statistics import LatentSums, MovingSums, Sums, conditions, latent_sums

_CONTROL_RATE = 0.01
"""Largest relative change of an adaptive λ1 per step."""
_PAIR = slice(Modality.VISUAL, Modality.TEXTUAL + 1)


class BatchSums(NamedTuple):
    """All that the losses see of a batch. The sums of its parts add up to those of the whole."""

    activation_MK: Tensor
    """Σ a per modality."""
    count_M: Tensor
    """Records per modality."""
    joint_LK: Tensor
    """Σ P(y = l) · b."""
    label_L: Tensor
    """Σ P(y = l)."""
    error: Tensor
    """Σ ‖h − ĥ‖²."""
    active_M: Tensor
    """Active latents per modality."""
    norm_M: Tensor
    """Σ ‖a‖₁ per modality, or what stands in its place."""


class Losses(NamedTuple):
    """One step's losses."""

    total: Tensor
    """What is differentiated. Its gradient is this process's share: the sum over processes is the global gradient."""
    terms: dict[str, Tensor]
    """Each term over the global batch, unweighted, detached."""
    activation_K: Tensor
    """Σ a over the global batch of this process's latents, detached: positive where a latent fired."""
    l0_M: Tensor
    """Active latents per record and modality over the global batch; 0 for an absent modality."""


class Objective(nn.Module):
    """‖h − ĥ‖² + λ1 ‖a‖₁ + λ2 R_cross + λ3 R_align, with the moving statistics behind the last two.

    An architecture may put another measure of sparsity in the place of ‖a‖₁ and add terms of its own.

    Joint views of a pair are reconstructed and kept sparse, but take no part in selectivity and information: they are
    evidence for neither modality.

    Args:
        config: weights and options.
        n_labels: width of the labels; 0 switches R_align off.
        mesh: over which processes records and latents are spread.
    """

    lambda1_M: Tensor

    def __init__(self, config: SAEConfig, n_labels: int, mesh: Mesh) -> None:
        super().__init__()
        self.config, self.mesh = config, mesh
        self.n_labels = n_labels if config.lambda3 > 0 else 0
        self.moving = MovingSums(config.n_latents // mesh.tp, self.n_labels, config.ema_decay)
        self.register_buffer("lambda1_M", torch.full((3,), config.lambda1))

    def forward(
        self, h_BD: Tensor, reconstruction_BD: Tensor, latents: Tensor | SparseLatents | LatentSums, modality_B: Tensor,
        labels_BL: Tensor | None, sparsity_B: Tensor | None = None,
    ) -> Losses:
        """Losses of a batch in standardised units, and one step of the moving statistics; arguments as in `sums`."""
        return self.losses(self.sums(h_BD, reconstruction_BD, latents, modality_B, labels_BL, sparsity_B))

    def sums(
        self, h_BD: Tensor, reconstruction_BD: Tensor, latents: Tensor | SparseLatents | LatentSums, modality_B: Tensor,
        labels_BL: Tensor | None, sparsity_B: Tensor | None = None,
    ) -> BatchSums:
        """This process's sums over its records.

        Args:
            h_BD, reconstruction_BD: [B, d], this process's records.
            latents: [B, K / tp], this process's latents, what is kept of them, or their sums.
            modality_B: [B] codes.
            labels_BL: [B, L] multi-hot labels; read only when lambda3 > 0.
            sparsity_B: [B] what λ1 weighs instead of ‖a‖₁.
        """
        by = conditions(modality_B, labels_BL if self.n_labels else None, self.config.mi_temperature, h_BD.dtype)
        activation_MK, joint_LK, active_B = (
            latents if isinstance(latents, LatentSums) else latent_sums(latents, by))
        norm_M = activation_MK.sum(1) if sparsity_B is None else sparsity_B @ by.one_hot_BM
        return BatchSums(
            activation_MK, by.one_hot_BM.sum(0), joint_LK, by.label_BL.sum(0), squared_error(h_BD, reconstruction_BD),
            active_B @ by.one_hot_BM, norm_M)

    def losses(self, batch: BatchSums) -> Losses:
        """Losses of a batch, of which this process has these sums, and one step of the moving statistics."""
        *local, _ = batch
        activation_MK, count_M, joint_LK, label_L, error, active_M = self.mesh.sum("dp", *local)
        n_records = count_M.sum()
        sums = self.moving.advance(Sums(activation_MK[_PAIR], count_M[_PAIR], joint_LK, label_L))
        selective = self.selectivity(sums)
        penalty = cross_penalty(selective, self.config.tau, self.config.reduction)
        reward = penalty.new_zeros(())
        if self.n_labels:
            information_K = mutual_information(sums.joint_LK, sums.label_L)
            reward = alignment(selective, information_K, self.config.tau, self.config.reduction)
        if self.config.reduction == "mean":
            penalty, reward = self.mesh.share(penalty), self.mesh.share(reward)
        penalty, reward, active_M, activation = self.mesh.sum(
            "tp", penalty, reward, active_M, activation_MK.detach().sum())

        total = self.additive(batch) / n_records
        if self.config.lambda2:
            total = total + self.config.lambda2 * penalty
        if self.n_labels:
            total = total + self.config.lambda3 * reward
        l0_M = (active_M / count_M.clamp_min(1)).detach()
        terms = {
            "squared_error": error / n_records, "l1": activation / n_records,
            "cross": penalty, "align": reward,
        }
        losses = Losses(total, {name: value.detach() for name, value in terms.items()},
                        activation_MK.detach().sum(0), l0_M)
        if self.config.controls_lambda1:
            self._control(l0_M, count_M)
        return losses

    @property
    def couples_records(self) -> bool:
        """Whether a term is no sum over records: its gradient for one depends on all the others of the batch."""
        return self.config.lambda2 > 0 or self.n_labels > 0

    def additive(self, batch: BatchSums) -> Tensor:
        """Σ ‖h − ĥ‖² + λ1 ‖a‖₁ over this process's records: the part of the loss that is a sum over records."""
        return batch.error + sparsity(batch.norm_M, self.lambda1_M)

    def slopes(self, batch: BatchSums) -> tuple[Losses, BatchSums]:
        """`losses`, and the gradient of the total with respect to each sum."""
        leaves = BatchSums(*(value.detach().requires_grad_() for value in batch))
        losses = self.losses(leaves)
        gradients = torch.autograd.grad(losses.total, leaves, allow_unused=True, materialize_grads=True)
        return losses, BatchSums(*gradients)

    def selectivity(self, sums: Sums) -> Selectivity:
        """Eq. 5 from moving sums, with the configured meaning of *any*."""
        mean_MK = sums.activation_MK / sums.count_M.clamp_min(1)[:, None]
        share: float | Tensor = 0.5
        if self.config.any == "empirical":
            share = sums.count_M[Modality.VISUAL] / sums.count_M.sum().clamp_min(1)
        return selectivity(mean_MK[Modality.VISUAL], mean_MK[Modality.TEXTUAL], share)

    @torch.no_grad()
    def _control(self, l0_M: Tensor, count_M: Tensor) -> None:
        """Adaptive sparsity: move λ1 of each modality towards its target L0, a joint view's to the mean of both."""
        target_M = l0_M.new_tensor([self.config.target_l0_visual, self.config.target_l0_textual])
        miss_M = ((l0_M[_PAIR] - target_M) / target_M).clamp(-1, 1) * (count_M[_PAIR] > 0)
        pair_M = self.lambda1_M[_PAIR] * (_CONTROL_RATE * miss_M).exp()
        self.lambda1_M = torch.cat([pair_M, pair_M.mean(0, keepdim=True)])  # a new tensor: backward needs the old one
