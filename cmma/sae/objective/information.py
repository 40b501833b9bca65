"""Mutual information between latents and labels (MI(a_i, y) of the paper's Eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_indicator(latents: Tensor, temperature: float) -> Tensor:
    """b = a / (a + T): 0 for a silent latent, ½ at a = T, and 1[a > 0] as T → 0."""
    return latents / (latents + temperature)


def label_distribution(labels_BL: Tensor, counted_B: Tensor) -> Tensor:
    """Multi-hot labels → each record's own label distribution, [B, L]: one unit of mass spread over its labels.

    For single labels it is the one-hot vector, and the information below is the ordinary one; for several it is the
    information about a label drawn at random from the record's. Records without labels, or with `counted_B` 0, have no
    mass and count for nothing.
    """
    mass_B1 = labels_BL.sum(1, keepdim=True)
    return labels_BL * (counted_B[:, None] / mass_B1.clamp_min(1e-6)) * (mass_B1 > 0)


def mutual_information(joint_LK: Tensor, label_L: Tensor) -> Tensor:
    """Plug-in I(b_i; y) in nats for every latent, [K]; at most ln 2.

    Args:
        joint_LK: Σ over records of P(y = l)·b_i: how much label l and latent i come together.
        label_L: Σ over records of P(y = l).
    """
    total = label_L.sum()
    tiny = torch.finfo(joint_LK.dtype).tiny
    label_L1 = (label_L / total.clamp_min(tiny))[:, None]
    on_LK = joint_LK / total.clamp_min(tiny)
    on_K = on_LK.sum(0)
    off_LK, off_K = (label_L1 - on_LK).clamp_min(0), (1 - on_K).clamp_min(0)
    return _weighted_log_ratio(on_LK, on_K * label_L1).sum(0) + _weighted_log_ratio(off_LK, off_K * label_L1).sum(0)


def _weighted_log_ratio(p: Tensor, q: Tensor) -> Tensor:
    """p · ln(p / q), with 0 (and no gradient) where p or q is zero."""
    small = 1e-20
    return p * (p.clamp_min(small) / q.clamp_min(small)).log()
