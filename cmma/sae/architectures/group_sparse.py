"""MGSAE: group sparsity over the codes of a pair (arXiv 2601.20028)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmma.sae.architectures.base import TrainingPass
from cmma.sae.architectures.topk import TopK, encode_kept, kept_latents, largest
from cmma.sae.mesh import Mesh
from cmma.sae.pairs import find_pairs
from cmma.sae.records import RecordBatch


class GroupSparse(TopK):
    """TopK with one dictionary and a price for latents that one record of a pair uses and the other does not.

    The price is λ Σ_i √(z_i^v² + z_i^t²) over the latents of a pair (`lambda_group`): two latents of one record each
    cost more than one latent in both. In training a random share of the latents (`mask`) is hidden from both records,
    so that each has to make do without. The input biases of the modalities are the standardiser's means.
    """

    reads_pairs = True

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`; the term `group` is the price."""
        pairs = find_pairs(batch.sample_B, batch.modality_B)
        encoder = self.encoder(h_BD, context_BCD, batch.modality_B)
        with torch.no_grad():
            hidden_BK = pseudo_random(batch, self.n_latents, h_BD.device, self.mesh) < self.config.mask
            hidden_BK[pairs.textual_P] = hidden_BK[pairs.visual_P]
            pre_BK = encoder.dense()
            seen_BK = pre_BK.masked_fill(hidden_BK, torch.finfo(pre_BK.dtype).min)
            values_Bk, indices_Bk = largest(seen_BK, kept_latents(self, batch.modality_B))
        latents = encode_kept(encoder, values_Bk, indices_Bk)
        latents_BK = latents.dense()
        both_PK = latents_BK[pairs.visual_P].square() + latents_BK[pairs.textual_P].square()
        # √0 has no gradient; a latent that neither record uses costs nothing.
        norm = both_PK.where(both_PK > 0, 1.0).sqrt().where(both_PK > 0, 0.0).sum()
        terms = {"group": self.config.lambda_group * norm}
        return TrainingPass(latents, self.reconstruct(latents, batch.modality_B), terms=terms)


def pseudo_random(batch: RecordBatch, n_latents: int, device: torch.device, mesh: Mesh) -> Tensor:
    """Uniform numbers [B, K] that are a function of the global batch's samples: a resumed run draws the same again."""
    first, n_records = mesh.before("dp", len(batch)), mesh.total("dp", len(batch))
    place_B = torch.arange(first, first + len(batch))
    weighted = (batch.sample_B.cpu().double() * (place_B + 1)).sum()
    mesh.sum_([weighted], "dp")
    draw = torch.Generator(device).manual_seed(int(weighted) & (2**62 - 1))
    return torch.rand(n_records, n_latents, generator=draw, device=device)[place_B]
