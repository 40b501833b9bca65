"""Selectivity of a latent for each modality (paper, Eq. 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Selectivity(NamedTuple):
    """S^v and S^t of every latent: E[a | modality] / E[a | any]. Both are 0 for a latent that never fires."""

    visual_K: Tensor
    textual_K: Tensor

    @property
    def product_K(self) -> Tensor:
        """S^v · S^t; with balanced weights in [0, 1], and 1 where the modalities drive the latent alike."""
        return self.visual_K * self.textual_K


def selectivity(mean_visual_K: Tensor, mean_textual_K: Tensor, visual_share: float | Tensor = 0.5) -> Selectivity:
    """Eq. 5 from the mean activation of each latent in each modality.

    Args:
        mean_visual_K, mean_textual_K: E[a_i | visual], E[a_i | textual], not negative.
        visual_share: weight of the visual mean in E[a_i | any]. One half is *balanced*: then S^v + S^t = 2. The share
            of visual records is *empirical*.
    """
    mean_any_K = visual_share * mean_visual_K + (1 - visual_share) * mean_textual_K
    tiny = torch.finfo(mean_any_K.dtype).tiny
    inverse_K = mean_any_K.clamp_min(tiny).reciprocal() * (mean_any_K > tiny)
    return Selectivity(mean_visual_K * inverse_K, mean_textual_K * inverse_K)
