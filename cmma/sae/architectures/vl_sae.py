"""VL-SAE: latents that are near a record in angle (arXiv 2510.21323)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmma.sae.architectures.base import SparseAutoencoder, some
from cmma.sae.architectures.topk import TopK
from cmma.sae.architectures.towers import Towers
from cmma.sae.config import SAEConfig
from cmma.sae.standardiser import Standardiser


class VLSAE(Towers, TopK):
    """a = the k largest of 2 − ‖h/‖h‖ − w_i/‖w_i‖‖, one encoder for both modalities and a decoder for each.

    An activation says how near a record is, not how large: 2 for the same direction, 2 − √2 for an orthogonal one. The
    norms of the decoders are therefore free, and start such that k features together have the norm of a record.
    """

    shares_encoder = True
    training_pass = SparseAutoencoder.training_pass  # TopK's is for linear encoders

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d, standardiser, generator)
        with torch.no_grad():
            self.W_dec.mul_((d / config.k) ** 0.5)

    def pre_activations(
        self, h_BD: Tensor, context_BCD: Tensor | None = None, modality_B: Tensor | None = None,
        latents_I: Tensor | None = None,
    ) -> Tensor:
        """2 − ‖h̄ − w̄_i‖, between 0 and 2; there is no bias."""
        h_BD = self._encoder_input(h_BD)
        if self.attention is not None and context_BCD is not None:
            h_BD = self.attention(h_BD, self._encoder_input(context_BCD))
        cosine_BK = F.normalize(h_BD, dim=1) @ F.normalize(some(self.W_enc, latents_I), dim=1).T
        return 2 - (2 - 2 * cosine_BK).clamp_min(1e-6).sqrt()

    def latent_parameters(self) -> list[nn.Parameter]:
        """See `SparseAutoencoder.latent_parameters`."""
        return [self.W_dec, self.W_enc]

    def remove_parallel_gradient(self) -> None:
        """Norms are free: nothing is removed."""

    def project(self) -> None:
        """Norms are free: nothing is projected."""
