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
        # A random unit-norm row times a record of norm √d is about standard normal, whatever d is.
        share = min(0.5, config.initial_l0 / config.n_latents)
        nn.init.constant_(self.b_enc, NormalDist().inv_cdf(share))

    def activate(self, pre_BK: Tensor) -> Tensor:
        """ReLU, in place."""
        return pre_BK.relu_()

    def encode_some(self, h_BD: Tensor, latents_I: Tensor, context_BCD: Tensor | None = None) -> Tensor:
        """Each latent depends on its own encoder row alone."""
        return self.activate(self.pre_activations(h_BD, context_BCD, latents_I))
