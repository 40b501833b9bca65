"""Matryoshka BatchTopK autoencoder: nested dictionaries (Bussmann et al. 2025)."""

from __future__ import annotations

from torch import Tensor

from cmma.sae.architectures.base import TrainingPass
from cmma.sae.architectures.batchtopk import BatchTopK
from cmma.sae.kernels.sparse import SparseLatents, gather_sum
from cmma.sae.records import RecordBatch


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents alone have to reconstruct as well, so that the general concepts come first.

    Every prefix of `config.prefixes` adds its squared error, weighed by `config.prefix_weights` relative to the whole
    dictionary's. Equal weights are Bussmann et al.'s; falling ones are the reverse weighting of MSAE (Zaigrajew et al.
    2025, there over nested k).
    """

    @property
    def prefix_sizes(self) -> list[int]:
        """Latents of each nested dictionary, ascending; the last is all of them."""
        return [max(1, round(share * self.config.n_latents)) for share in self.config.prefixes]

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`; the term `prefixes` is the error of all prefixes but the last."""
        modality_B = batch.modality_B
        latents = self.encode_batch(h_BD, context_BCD, modality_B)
        *nested, whole_BD = self.prefix_reconstructions(latents)
        error = h_BD.new_zeros(())
        for weight, reconstruction_BD in zip(self.config.prefix_weights, nested, strict=False):
            miss_BD = h_BD - self.visible(reconstruction_BD, modality_B)
            error = error + weight / self.config.prefix_weights[-1] * miss_BD.square().sum()
        return TrainingPass(latents, self.visible(whole_BD, modality_B), terms={"prefixes": error})

    def prefix_reconstructions(self, latents: SparseLatents) -> list[Tensor]:
        """ĥ from the first latents alone, [B, d] for each prefix."""
        reconstructions: list[Tensor] = []
        indices_Bk = latents.kept.indices_Bk + self.mesh.tp_rank * self.n_latents
        sum_BD: Tensor = self.mesh.share(self.b_pre)
        start = 0
        for stop in self.prefix_sizes:
            inside_Bk = (indices_Bk >= start) & (indices_Bk < stop)
            sum_BD = sum_BD + gather_sum(latents._replace(values_Bk=latents.values_Bk * inside_Bk), self.W_dec)
            reconstructions.append(sum_BD)
            start = stop
        return list(self.mesh.sum("tp", *reconstructions))
