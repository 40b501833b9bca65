"""Numbers that need no labels: activation histograms, monosemanticity, cross-modal consistency."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cmma.features.specialisation import MODALITIES


class LogHistogram:
    """Streamed histogram of log10 activation per modality and latent, over active tokens.

    Attributes:
        edges: bin edges in log10 units, [bins + 1]; values beyond the ends fall into the outer bins.
        counts_MKH: tokens per modality (visual, textual), latent and bin.
    """

    def __init__(self, n_latents: int, low: float = -3.0, high: float = 2.0, bins: int = 25) -> None:
        self.edges = np.linspace(low, high, bins + 1)
        self.counts_MKH = torch.zeros(2, n_latents, bins, dtype=torch.int64)

    def add(self, latents_TK: Tensor, modality_T: Tensor) -> None:
        """Add tokens; only the active entries cost anything."""
        bins = self.counts_MKH.shape[2]
        width = (self.edges[-1] - self.edges[0]) / bins
        for row, modality in enumerate(MODALITIES):
            own_TK = latents_TK[modality_T == int(modality)]
            token, latent = (own_TK > 0).nonzero(as_tuple=True)
            place = ((own_TK[token, latent].log10() - self.edges[0]) / width).floor().clamp(0, bins - 1).long()
            flat = (latent * bins + place).cpu()
            self.counts_MKH[row] += torch.bincount(flat, minlength=self.counts_MKH[row].numel()).view(-1, bins)


def monosemanticity(acts_NK: Tensor, embeddings_ND: Tensor) -> Tensor:
    """How alike the samples are that a feature fires on (Pach et al.), in [−1, 1]; [K].

    Σ_{i<j} a_i a_j cos(e_i, e_j) / Σ_{i<j} a_i a_j with min-max scaled activations. With unit embeddings the numerator
    is ½(‖Σ a_i e_i‖² − Σ a_i²) and the denominator ½((Σ a_i)² − Σ a_i²): O(N·D) per feature. NaN for a feature that is
    constant or fires on a single sample.
    """
    scaled_NK = _scaled(acts_NK.double())
    embeddings_ND = torch.nn.functional.normalize(embeddings_ND.double(), dim=1)
    squares_K = scaled_NK.square().sum(0)
    numerator_K = (scaled_NK.T @ embeddings_ND).square().sum(1) - squares_K
    denominator_K = scaled_NK.sum(0).square() - squares_K
    return torch.where(denominator_K > 1e-12, numerator_K / denominator_K, torch.nan)


def cross_monosemanticity(
    visual_NK: Tensor, textual_NK: Tensor, image_ND: Tensor, text_ND: Tensor
) -> Tensor:
    """How alike the images and the texts are that a feature fires on, in [−1, 1]; [K].

    `monosemanticity` over pairs of an image and a text of *different* samples, Σ_{i≠j} v_i t_j cos(e_i, w_j) /
    Σ_{i≠j} v_i t_j, with both activations min-max scaled. Images and texts of one encoder lie apart, so only the
    difference to shuffled embeddings means anything. NaN for a feature that is constant in a modality.

    Args:
        visual_NK, textual_NK: activations of N samples in their image and in their text.
        image_ND, text_ND: embeddings of the samples by one encoder.
    """
    visual_NK, textual_NK = (_scaled(part.double()) for part in (visual_NK, textual_NK))
    image_ND, text_ND = (torch.nn.functional.normalize(part.double(), dim=1) for part in (image_ND, text_ND))
    own_N = (image_ND * text_ND).sum(1)
    both_NK = visual_NK * textual_NK
    numerator_K = ((visual_NK.T @ image_ND) * (textual_NK.T @ text_ND)).sum(1) - own_N @ both_NK
    denominator_K = visual_NK.sum(0) * textual_NK.sum(0) - both_NK.sum(0)
    return torch.where(denominator_K > 1e-12, numerator_K / denominator_K, torch.nan)


def _scaled(acts_NK: Tensor) -> Tensor:
    """Each column from 0 at its minimum to 1 at its maximum; NaN where it is constant."""
    low_K, high_K = acts_NK.amin(0), acts_NK.amax(0)
    return (acts_NK - low_K) / (high_K - low_K)


def cross_modal_consistency(means_NMK: Tensor) -> Tensor:
    """Pearson correlation over samples of a latent's mean visual and mean textual activation (paper, 4.4.1); [K].

    Samples that lack a modality (NaN) are left out. NaN for a latent that is constant in one of the modalities.
    """
    both_NMK = means_NMK[means_NMK[:, :, 0].isfinite().all(1)].double()
    if len(both_NMK) < 2:
        return torch.full((means_NMK.shape[2],), torch.nan, dtype=torch.float64)
    centred_NMK = both_NMK - both_NMK.mean(0)
    visual_NK, textual_NK = centred_NMK.unbind(1)
    norm_K = (visual_NK.square().sum(0) * textual_NK.square().sum(0)).sqrt()
    return torch.where(norm_K > 1e-12, (visual_NK * textual_NK).sum(0) / norm_K, torch.nan)
