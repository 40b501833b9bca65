"""The ReLU autoencoder under an L1 norm (Bricken et al. 2023)."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor, nn

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.config import SAEConfig
from cmma.sae.standardiser import Standardiser


class Standard(SparseAutoencoder):
    """a = ReLU(W_enc (h − b_pre) + b_enc), the bias first such that `config.initial_l0` latents are active."""

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d, standardiser, generator)
        nn.init.constant_(self.b_enc, -gaussian_threshold(config.initial_l0, config.n_latents))

    def activate(self, pre_BK: Tensor, modality_B: Tensor | None = None, latents_I: Tensor | None = None) -> Tensor:
        """ReLU, in place."""
        return pre_BK.relu_()


def gaussian_threshold(l0: float, n_latents: int) -> float:
    """What l0 of n_latents standard normal numbers exceed on average; at least 0.

    A random row of norm one times a record of norm √d is about standard normal, whatever d is.
    """
    return -NormalDist().inv_cdf(min(0.5, l0 / n_latents))
