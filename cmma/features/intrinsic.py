"""Numbers that need no labels: activation histograms, Gini, monosemanticity, cross-modal consistency."""

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


def gini(values: Tensor, dim: int = -1) -> Tensor:
    """Gini coefficient of non-negative values along `dim`: 0 when all are equal, (n − 1)/n when one has everything.

    NaN where all values are zero.
    """
    ordered = values.double().sort(dim=dim).values.movedim(dim, -1)
    n = ordered.shape[-1]
    rank = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    return ((2 * rank - n - 1) * ordered).sum(-1) / (n * ordered.sum(-1))


def monosemanticity(acts_NK: Tensor, embeddings_ND: Tensor) -> Tensor:
    """How alike the samples are that a feature fires on (Pach et al.), in [−1, 1]; [K].

    Σ_{i<j} a_i a_j cos(e_i, e_j) / Σ_{i<j} a_i a_j with min-max scaled activations. With unit embeddings the numerator
    is ½(‖Σ a_i e_i‖² − Σ a_i²) and the denominator ½((Σ a_i)² − Σ a_i²): O(N·D) per feature. NaN for a feature that is
    constant or fires on a single sample.
    """
    acts_NK, embeddings_ND = acts_NK.double(), torch.nn.functional.normalize(embeddings_ND.double(), dim=1)
    low_K, high_K = acts_NK.amin(0), acts_NK.amax(0)
    scaled_NK = (acts_NK - low_K) / (high_K - low_K)
    squares_K = scaled_NK.square().sum(0)
    numerator_K = (scaled_NK.T @ embeddings_ND).square().sum(1) - squares_K
    denominator_K = scaled_NK.sum(0).square() - squares_K
    return torch.where(denominator_K > 1e-12, numerator_K / denominator_K, torch.nan)


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
