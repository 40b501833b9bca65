"""Gated autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmma.sae.architectures.base import TrainingPass, some
from cmma.sae.architectures.standard import Standard
from cmma.sae.config import SAEConfig
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser


class Gated(Standard):
    """Which latents are active and how much are told apart: a = 1[π > 0] · ReLU(e^r (π − b_enc) + b_mag).

    π = W_enc (h − b_pre) + b_enc is the gate. lambda1 weighs Σ ReLU(π), which does not shrink the activations; since
    the step has no gradient, an auxiliary reconstruction from ReLU(π) with the decoder held fixed trains the gate.
    """

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d, standardiser, generator)
        self.r_mag = nn.Parameter(torch.zeros(config.n_latents))
        self.b_mag = nn.Parameter(self.b_enc.detach().clone())

    def activate(self, pre_BK: Tensor, modality_B: Tensor | None = None, latents_I: Tensor | None = None) -> Tensor:
        """The gate's pre-activations → gated magnitudes."""
        scale_I, offset_I = some(self.r_mag, latents_I).exp(), some(self.b_mag, latents_I)
        magnitude_BI = torch.addcmul(offset_I - scale_I * some(self.b_enc, latents_I), scale_I, pre_BK)
        return magnitude_BI.relu() * (pre_BK > 0)

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`; the term `gate` is the auxiliary reconstruction error."""
        gate_BK = self.pre_activations(h_BD, context_BCD, batch.modality_B)
        latents_BK = self.activate(gate_BK, batch.modality_B)
        open_BK = gate_BK.relu()
        share_BD = F.linear(open_BK, self.W_dec.detach().T, self.mesh.share(self.b_pre.detach()))
        frozen_BD = self.mesh.sum("tp", share_BD)[0]
        error = (h_BD - self.visible(frozen_BD, batch.modality_B)).square().sum()
        norm_B = open_BK.sum(1, dtype=h_BD.dtype)
        return TrainingPass(latents_BK, self.reconstruct(latents_BK, batch.modality_B), norm_B, {"gate": error})

    def latent_parameters(self) -> list[nn.Parameter]:
        """See `SparseAutoencoder.latent_parameters`."""
        return [*super().latent_parameters(), self.r_mag, self.b_mag]

    @torch.no_grad()
    def aim(self, latents_I: Tensor, direction_ID: Tensor, norm: float | Tensor) -> None:
        """See `SparseAutoencoder.aim`: gate and magnitude start alike."""
        super().aim(latents_I, direction_ID, norm)
        self.r_mag[latents_I] = 0
        self.b_mag[latents_I] = self.b_enc[latents_I]
