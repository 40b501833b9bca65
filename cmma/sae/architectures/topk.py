"""TopK autoencoder (Gao et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmma.sae.architectures.base import SparseAutoencoder


class TopK(SparseAutoencoder):
    """a = ReLU(the k largest pre-activations of the record), zero elsewhere."""

    def activate(self, pre_BK: Tensor) -> Tensor:
        """Keep k latents per record; fewer are active where fewer than k pre-activations are positive."""
        values_Bk, kept_Bk = pre_BK.topk(self.config.k, dim=1, sorted=False)
        return torch.zeros_like(pre_BK).scatter(1, kept_Bk, values_Bk.relu())
