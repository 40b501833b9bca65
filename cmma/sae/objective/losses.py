"""The terms of the objective, each a pure function of named tensors (paper, Eq. 3, 4, 6)."""

from __future__ import annotations

from torch import Tensor

from cmma.sae.objective.selectivity import Selectivity


def squared_error(h_BD: Tensor, reconstruction_BD: Tensor) -> Tensor:
    """Σ_b ‖h_b − ĥ_b‖², summed over d and over the records (Eq. 3; the caller divides by the global batch)."""
    return (reconstruction_BD - h_BD).square().sum()


def sparsity(norm_M: Tensor, lambda1_M: Tensor) -> Tensor:
    """Σ_b λ1[m_b] ‖a_b‖₁ from the sums of the norms per modality (Eq. 3)."""
    return norm_M @ lambda1_M


def cross_penalty(selectivity: Selectivity, tau: float, reduction: str = "sum") -> Tensor:
    """R_cross = Σ_i max(0, S_i^v S_i^t − τ), a scalar (Eq. 4)."""
    return _reduce((selectivity.product_K - tau).clamp(min=0), reduction)


def alignment(selectivity: Selectivity, information_K: Tensor, tau: float, reduction: str = "sum") -> Tensor:
    """R_align = −Σ_i 1[S_i^v S_i^t > τ] · MI(a_i, y), a scalar in nats (Eq. 6).

    The indicator has no gradient: what moves is the information of the latents that are cross-modal now.
    """
    return -_reduce(information_K * (selectivity.product_K.detach() > tau), reduction)


def _reduce(value_K: Tensor, reduction: str) -> Tensor:
    return value_K.sum() if reduction == "sum" else value_K.mean()
