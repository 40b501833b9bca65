"""How alike the codes of an image and of its text are, from codes made of one modality at a time.

Every function takes the latents of N pairs, visual_NK and textual_NK [N, K], not negative. For a floor, permute one of
them over the pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

_ROWS_AT_ONCE = 4096  # of the bridge, a matrix of latents by latents


def strangers(n: int, seed: int = 0) -> Tensor:
    """A random permutation of n samples that leaves none in its place: the partners of shuffled pairs, int64[n]."""
    order_N = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partner_N = torch.empty_like(order_N)
    partner_N[order_N] = order_N.roll(1)
    return partner_N


def code_cosine(visual_NK: Tensor, textual_NK: Tensor) -> Tensor:
    """Cosine of the two codes of each pair, [N]; 0 where one is silent."""
    return torch.cosine_similarity(visual_NK, textual_NK, dim=1)


def support_jaccard(visual_NK: Tensor, textual_NK: Tensor) -> Tensor:
    """Latents active in both codes of a pair over latents active in either, [N]; 0 where both are silent."""
    visual_NK, textual_NK = visual_NK > 0, textual_NK > 0
    return (visual_NK & textual_NK).sum(1) / (visual_NK | textual_NK).sum(1).clamp_min(1)


def modality_score(visual_NK: Tensor, textual_NK: Tensor) -> Tensor:
    """μ_k = E_I z_k / (E_I z_k + E_T z_k), [K]: 1 for a latent of images alone, 0 for texts alone; NaN if dead."""
    image_K, text_K = visual_NK.double().mean(0), textual_NK.double().mean(0)
    return image_K / (image_K + text_K)


def bridge_diagonal(visual_NK: Tensor, textual_NK: Tensor, visual_KW: Tensor, textual_KW: Tensor) -> float:
    """How much of the bridge between the modalities runs through one and the same latent, in [0, 1].

    The bridge is B = E_pairs[z_I z_Tᵀ] ⊙ D_I D_Tᵀ over pairs of latents (co-activation times alignment of unit
    directions, arXiv 2504.11695); the value is Σ_k |B_kk| / Σ_kl |B_kl|. NaN where nothing co-activates.

    Args:
        visual_KW, textual_KW: direction of every latent in each modality.
    """
    total = diagonal = 0.0
    live = ((visual_NK > 0) | (textual_NK > 0)).any(0)  # the others add nothing
    visual_NK, textual_NK, visual_KW = visual_NK[:, live], textual_NK[:, live], visual_KW[live]
    unit_textual_WK = normalize(textual_KW[live], dim=1).T
    for rows in torch.arange(len(visual_KW)).split(_ROWS_AT_ONCE):
        together_RK = visual_NK[:, rows].T @ textual_NK / len(visual_NK)
        bridge_RK = (together_RK * (normalize(visual_KW[rows], dim=1) @ unit_textual_WK)).abs()
        total += float(bridge_RK.sum())
        diagonal += float(bridge_RK[:, rows].diagonal().sum())
    return diagonal / total if total > 0 else float("nan")


def retrievable(latents_NK: Tensor, own: int) -> np.ndarray:
    """Codes as vectors that retrieval can compare: a silent one has cosine 0 with every other instead of none.

    Args:
        own: 0 for the codes of one modality, 1 for those of the other.
    """
    silent_N2 = np.zeros((len(latents_NK), 2), dtype=np.float32)
    silent_N2[:, own] = (latents_NK == 0).all(1).numpy()
    return np.concatenate([latents_NK.numpy(), silent_N2], axis=1)


def matching_latents(directions_KD: Tensor, other_KD: Tensor) -> Tensor:
    """Which latent of another dictionary each latent is, one to one, at the largest sum of cosines; int64[K]."""
    cosine_KK = normalize(directions_KD, dim=1) @ normalize(other_KD, dim=1).T
    return torch.from_numpy(linear_sum_assignment(-cosine_KK.cpu().numpy())[1])


def concept_jaccard(visual_NK: Tensor, textual_NK: Tensor, labels_NC: Tensor, top: int = 20) -> Tensor:
    """Do a latent's strongest images and its strongest texts show the same concepts? [K]; NaN for a dead latent.

    In each modality the concepts of a latent are those that more than half of its `top` strongest (active) samples
    carry; the value is the Jaccard index of the two sets, 0 where both are empty. After the concept alignment of SPARC
    (arXiv 2507.06265), with masks of one modality.
    """
    sets = []
    for latents_NK in (visual_NK, textual_NK):
        value_TK, sample_TK = latents_NK.topk(min(top, len(latents_NK)), dim=0)
        active_TK = (value_TK > 0).float()
        carried_KC = torch.einsum("tk,tkc->kc", active_TK, labels_NC[sample_TK].float())
        sets.append(carried_KC > active_TK.sum(0)[:, None] / 2)
    both_K, either_K = (sets[0] & sets[1]).sum(1), (sets[0] | sets[1]).sum(1)
    alive_K = (visual_NK > 0).any(0) | (textual_NK > 0).any(0)
    return torch.where(alive_K, both_K / either_K.clamp_min(1), torch.nan)


def squared_errors(prediction_NW: Tensor, target_NW: Tensor) -> tuple[Tensor, Tensor]:
    """‖x − x̂‖² and ‖x − x̄‖² of each record, float64[N] both."""
    target_NW, prediction_NW = target_NW.double(), prediction_NW.double()
    return (target_NW - prediction_NW).square().sum(1), (target_NW - target_NW.mean(0)).square().sum(1)


def normalised_error(prediction_NW: Tensor, target_NW: Tensor) -> float:
    """Σ‖x − x̂‖² / Σ‖x − x̄‖²: 1 for a prediction that is no better than the mean."""
    error_N, spread_N = squared_errors(prediction_NW, target_NW)
    return float(error_N.sum() / spread_N.sum())
