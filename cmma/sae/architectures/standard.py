"""The ReLU autoencoder under an L1 norm (Bricken et al. 2023)."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor, nn

from cmma.sae.architectures.base import SparseAutoencoder, TrainingPass
from cmma.sae.config import SAEConfig
from cmma.sae.objective.statistics import conditions, relu_and_sums
from cmma.sae.records import RecordBatch
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

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`; the latents are summed while they are rectified."""
        pre_BK = self.pre_activations(h_BD, context_BCD, batch.modality_B)
        labels_BL = batch.labels_BL if self.config.lambda3 > 0 else None
        by = conditions(batch.modality_B, labels_BL, self.config.mi_temperature, h_BD.dtype)
        latents_BK, sums = relu_and_sums(pre_BK, by)
        return TrainingPass(sums, self.reconstruct(latents_BK, batch.modality_B))


def gaussian_threshold(l0: float, n_latents: int) -> float:
    """What l0 of n_latents standard normal numbers exceed on average; at least 0.

    A random row of norm one times a record of norm √d is about standard normal, whatever d is.
    """
    return -NormalDist().inv_cdf(min(0.5, l0 / n_latents))
