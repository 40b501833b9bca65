"""TopK autoencoder (Gao et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.mesh import ALONE, Mesh
from cmma.sae.standardiser import modality_row


class TopK(SparseAutoencoder):
    """a = ReLU(the k largest pre-activations of the record), zero elsewhere.

    With adaptive sparsity k is the target L0 of the record's modality.
    """

    competes = True

    def activate(self, pre_BK: Tensor, modality_B: Tensor | None = None, latents_I: Tensor | None = None) -> Tensor:
        """Keep k latents per record; fewer are active where fewer than k pre-activations are positive."""
        return keep_largest(pre_BK, kept_latents(self, modality_B), self.mesh)


def kept_latents(sae: SparseAutoencoder, modality_B: Tensor | None) -> int | Tensor:
    """k of every record: one number, or [B]."""
    k_M = sae.config.kept_latents()
    row = modality_row(modality_B)
    if not sae.config.adaptive_sparsity or isinstance(row, int):
        return k_M[-1]
    return torch.tensor(k_M, device=row.device)[row]


def keep_largest(pre_BK: Tensor, k: int | Tensor, mesh: Mesh = ALONE) -> Tensor:
    """ReLU of the k largest of each row, or of the k[b] largest of row b; zero elsewhere.

    The latents of all tp peers of the mesh make up a row.
    """
    n_latents = pre_BK.shape[1]
    if isinstance(k, int):
        values_Bk, kept_Bk = pre_BK.topk(min(k, n_latents), dim=1, sorted=False)
    else:
        values_Bk, kept_Bk = pre_BK.topk(min(int(k.max()) if len(k) else 1, n_latents), dim=1)
        values_Bk = values_Bk * (torch.arange(values_Bk.shape[1], device=k.device) < k[:, None])
    values_Bk = mesh.keep_largest("tp", values_Bk, k)
    return torch.zeros_like(pre_BK).scatter(1, kept_Bk, values_Bk.relu())
