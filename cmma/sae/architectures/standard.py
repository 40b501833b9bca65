"""The ReLU autoencoder under an L1 norm (Bricken et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from cmma.sae.architectures.base import SparseAutoencoder


class Standard(SparseAutoencoder):
    """a = ReLU(W_enc (h − b_pre) + b_enc)."""

    def activate(self, pre_BK: Tensor) -> Tensor:
        """ReLU, in place."""
        return pre_BK.relu_()

    def encode_some(self, h_BD: Tensor, latents_I: Tensor, context_BCD: Tensor | None = None) -> Tensor:
        """Each latent depends on its own encoder row alone."""
        return self.activate(self.pre_activations(h_BD, context_BCD, latents_I))
