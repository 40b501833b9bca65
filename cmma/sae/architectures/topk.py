"""TopK autoencoder (Gao et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmma.sae.architectures.base import SparseAutoencoder, TrainingPass
from cmma.sae.architectures.encoder import LinearEncoder
from cmma.sae.kernels.kept import Kept
from cmma.sae.kernels.sparse import SparseLatents
from cmma.sae.mesh import ALONE, Mesh
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import modality_row


class TopK(SparseAutoencoder):
    """a = ReLU(the k largest pre-activations of the record), zero elsewhere.

    With adaptive sparsity k is the target L0 of the record's modality.
    """

    competes = True

    def activate(self, pre_BK: Tensor, modality_B: Tensor | None = None, latents_I: Tensor | None = None) -> Tensor:
        """Keep k latents per record; fewer are active where fewer than k pre-activations are positive."""
        return keep_largest(pre_BK, kept_latents(self, modality_B), self.mesh)

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`; the latents stay sparse from the encoder's product on."""
        encoder = self.encoder(h_BD, context_BCD, batch.modality_B)
        with torch.no_grad():
            values_Bk, indices_Bk = largest(encoder.dense(), kept_latents(self, batch.modality_B), self.mesh)
        latents = encode_kept(encoder, values_Bk, indices_Bk)
        return TrainingPass(latents, self.reconstruct(latents, batch.modality_B))


def kept_latents(sae: SparseAutoencoder, modality_B: Tensor | None) -> int | Tensor:
    """k of every record: one number, or [B]."""
    k_M = sae.config.kept_latents()
    row = modality_row(modality_B)
    if not sae.config.adaptive_sparsity or isinstance(row, int):
        return k_M[-1]
    return torch.tensor(k_M, device=row.device)[row]


def keep_largest(pre_BK: Tensor, k: int | Tensor, mesh: Mesh = ALONE) -> Tensor:
    """ReLU of the k largest of each row, or of the k[b] largest of row b; zero elsewhere. `mesh` as in `largest`."""
    values_Bk, kept_Bk = largest(pre_BK, k, mesh)
    return torch.zeros_like(pre_BK).scatter(1, kept_Bk, values_Bk.relu())


def largest(pre_BK: Tensor, k: int | Tensor, mesh: Mesh = ALONE) -> tuple[Tensor, Tensor]:
    """The k largest of each row, or the k[b] largest of row b and zeros: values and indices, [B, max k].

    Where latents are spread over the mesh, a row is that of all tp peers; each gets zeros for what it has not.
    """
    n_latents = pre_BK.shape[1]
    if isinstance(k, int):
        values_Bk, kept_Bk = pre_BK.topk(min(k, n_latents), dim=1, sorted=False)
    else:
        values_Bk, kept_Bk = pre_BK.topk(min(int(k.max()) if len(k) else 1, n_latents), dim=1)
        values_Bk = values_Bk * (torch.arange(values_Bk.shape[1], device=k.device) < k[:, None])
    return mesh.keep_largest("tp", values_Bk, k), kept_Bk


def encode_kept(encoder: LinearEncoder, values_Bk: Tensor, indices_Bk: Tensor) -> SparseLatents:
    """ReLU of kept pre-activations, whose numbers are known, with their gradient; a zero stands for nothing."""
    kept = Kept(indices_Bk, len(encoder.weight_KD))
    return SparseLatents(encoder.at(kept, values_Bk.to(encoder.weight_KD.dtype)).relu(), kept)


def encode_active(encoder: LinearEncoder, latents_BK: Tensor) -> SparseLatents:
    """Latents that are known, zeros and all, as what is active in them, with its gradient."""
    # The number of entries that are not zero; a sum of flags would convert all of them to integers first.
    most = max(1, int(torch.linalg.vector_norm(latents_BK, 0, dim=1).amax())) if len(latents_BK) else 1
    return encode_kept(encoder, *largest(latents_BK, most))
