"""SPARC: one mask of latents for both modalities (arXiv 2507.06265)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmma.modality import Modality
from cmma.sae.architectures.base import TrainingPass
from cmma.sae.architectures.topk import TopK, encode_active, keep_largest, kept_latents
from cmma.sae.architectures.towers import Towers, tower_of
from cmma.sae.pairs import Pairs, find_pairs
from cmma.sae.records import RecordBatch


class SPARC(Towers, TopK):
    """An encoder and a decoder per modality; the two records of a pair keep the same latents.

    The k largest of the *sum* of both records' pre-activations are kept (Global TopK), and each record is also
    reconstructed from the latents of its partner (weight `lambda_cross`). A record without a partner keeps its own
    largest, and so does `encode`: `encode_pairs` gives the codes under the joint mask.
    """

    reads_pairs = True

    def encode_pairs(self, visual_PD: Tensor, textual_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [P, K] of both records of each pair under their joint mask, from records in the model's units."""
        pre = []
        for modality, acts_PD in ((Modality.VISUAL, visual_PD), (Modality.TEXTUAL, textual_PD)):
            code_P = torch.full((len(acts_PD),), int(modality), device=acts_PD.device)
            h_PW = self.standardiser.standardise(acts_PD.to(self.W_enc.dtype), code_P)
            pre.append(self.pre_activations(h_PW, None, code_P))
        return self._keep_jointly(pre[0], pre[1], self.config.k)

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """See `SparseAutoencoder.training_pass`; the term `cross_reconstruction` is the partner's error."""
        modality_B, pairs = batch.modality_B, find_pairs(batch.sample_B, batch.modality_B)
        encoder = self.encoder(h_BD, context_BCD, modality_B)
        with torch.no_grad():
            latents_BK = self._keep_of_batch(encoder.dense(), kept_latents(self, modality_B), pairs)
        latents = encode_active(encoder, latents_BK)
        if not len(pairs):
            return TrainingPass(latents, self.reconstruct(latents, modality_B))
        decoded_BW = self.decode_standardised(latents)
        crossed = h_BD.new_zeros(())
        for modality, own_P, other_P in (
            (Modality.VISUAL, pairs.visual_P, pairs.textual_P), (Modality.TEXTUAL, pairs.textual_P, pairs.visual_P)
        ):
            from_partner_PW = tower_of(modality, decoded_BW[other_P], self.feature_blocks)
            crossed = crossed + (h_BD[own_P] - from_partner_PW).square().sum()
        terms = {"cross_reconstruction": self.config.lambda_cross * crossed}
        return TrainingPass(latents, self.visible(decoded_BW, modality_B), terms=terms)

    def _keep_of_batch(self, pre_BK: Tensor, k: int | Tensor, pairs: Pairs) -> Tensor:
        """Each record's own largest, and of the records of pairs those under their joint mask."""
        latents_BK = keep_largest(pre_BK, k)
        if len(pairs):
            joint_k = k if isinstance(k, int) else (k[pairs.visual_P] + k[pairs.textual_P]) // 2
            visual_PK, textual_PK = self._keep_jointly(pre_BK[pairs.visual_P], pre_BK[pairs.textual_P], joint_k)
            latents_BK[pairs.visual_P], latents_BK[pairs.textual_P] = visual_PK, textual_PK
        return latents_BK

    @staticmethod
    def _keep_jointly(visual_PK: Tensor, textual_PK: Tensor, k: int | Tensor) -> tuple[Tensor, Tensor]:
        """ReLU of both pre-activations where their sum is among the k largest; that may be zero in one of them."""
        sum_PK = visual_PK + textual_PK
        lowest = sum_PK.detach().amin() - 1  # shifted so that what is kept is positive
        kept_PK = keep_largest(sum_PK.detach() - lowest, k) > 0
        return visual_PK.relu() * kept_PK, textual_PK.relu() * kept_PK
