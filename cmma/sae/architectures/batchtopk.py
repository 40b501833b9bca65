"""BatchTopK autoencoder (Bussmann et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder, TrainingPass
from cmma.sae.architectures.standard import gaussian_threshold
from cmma.sae.architectures.topk import encode_active
from cmma.sae.config import SAEConfig
from cmma.sae.kernels.sparse import SparseLatents
from cmma.sae.mesh import Mesh
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser, modality_row

ROWS_AT_ONCE = 64


class BatchTopK(SparseAutoencoder):
    """In training the B·k largest positive pre-activations of a batch, elsewhere those above a running threshold.

    The threshold is the moving mean of the smallest activation that was kept, so that a record's latents do not depend
    on its company. With adaptive sparsity each modality has its own k and threshold.
    """

    whole_batch = True
    threshold_M: Tensor

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d, standardiser, generator)
        first = [gaussian_threshold(k, config.n_latents) for k in config.kept_latents()]
        self.register_buffer("threshold_M", torch.tensor(first))

    def activate(self, pre_BK: Tensor, modality_B: Tensor | None = None, latents_I: Tensor | None = None) -> Tensor:
        """Keep what is above the threshold of the record's modality."""
        threshold = self.threshold_M[modality_row(modality_B)]
        return pre_BK * (pre_BK > (threshold if threshold.ndim == 0 else threshold[:, None]))

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`; moves the threshold."""
        latents = self.encode_batch(h_BD, context_BCD, batch.modality_B)
        return TrainingPass(latents, self.reconstruct(latents, batch.modality_B))

    def encode_batch(self, h_BD: Tensor, context_BCD: Tensor | None, modality_B: Tensor) -> SparseLatents:
        """The latents of a training batch; moves the threshold."""
        encoder = self.encoder(h_BD, context_BCD, modality_B)
        with torch.no_grad():
            latents_BK = self.keep_of_batch(encoder.dense(), modality_B)
        return encode_active(encoder, latents_BK)

    def keep_of_batch(self, pre_BK: Tensor, modality_B: Tensor) -> Tensor:
        """The n·k largest of the n records of all processes, zero elsewhere, and one step of the threshold."""
        k_M = self.config.kept_latents()
        latents_BK = torch.zeros_like(pre_BK)
        for modality, k in enumerate(k_M) if self.config.adaptive_sparsity else [(None, k_M[-1])]:
            is_row_B = torch.ones_like(modality_B, dtype=torch.bool) if modality is None else modality_B == modality
            row_R = is_row_B.nonzero()[:, 0]
            moved = slice(None) if modality is None else slice(modality, modality + 1)
            n_records = self.mesh.total("dp", len(row_R))
            if n_records:
                values_n, where_n, smallest = _largest_of_all(pre_BK, row_R, k * n_records, self.mesh)
                latents_BK.view(-1)[where_n] = values_n
                self._move_threshold(moved, smallest)
            elif modality == Modality.JOINT:  # it stands for "unknown"
                self.threshold_M[modality] = self.threshold_M[:modality].mean()
        return latents_BK

    @torch.no_grad()
    def _move_threshold(self, modalities: slice, smallest: Tensor) -> None:
        moved_M = self.threshold_M.clone()
        moved_M[modalities] = torch.lerp(smallest.to(moved_M.dtype), moved_M[modalities], self.config.threshold_decay)
        self.threshold_M.copy_(torch.where(smallest > 0, moved_M, self.threshold_M))


def _largest_of_all(pre_BK: Tensor, row_R: Tensor, n: int, mesh: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest positive numbers in some rows of all processes.

    Rows are gone through `ROWS_AT_ONCE` at a time, since sorting takes several times the memory of what is sorted.

    Returns:
        This process's share of them [≤ n], zero for what is not among the n largest; their places in the flattened
        matrix; and the smallest of all of them, 0 if there is none.
    """
    n_latents = pre_BK.shape[1]
    values_n, where_n = pre_BK.new_empty(0), row_R.new_empty(0)
    for some_r in row_R.split(ROWS_AT_ONCE):
        of_rows = some_r[:, None] * n_latents + torch.arange(n_latents, device=some_r.device)
        values_N = torch.cat([values_n, pre_BK[some_r].flatten().relu()])
        where_N = torch.cat([where_n, of_rows.flatten()])
        values_n, kept_n = values_N.topk(min(n, len(values_N)), sorted=False)
        where_n = where_N[kept_n]
    values_n = mesh.keep_largest("all", values_n[None], n)[0]
    positive_n = torch.where(values_n > 0, values_n, torch.inf)
    smallest = mesh.gather("all", F.pad(positive_n.detach(), (0, 1), value=torch.inf).amin()).amin()
    return values_n, where_n, smallest.nan_to_num(posinf=0.0)
