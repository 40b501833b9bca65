"""Two dictionaries that are matched afterwards (arXiv 2606.29888)."""

from __future__ import annotations

from itertools import islice

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cmma.errors import DataError
from cmma.sae.architectures.topk import TopK
from cmma.sae.architectures.towers import Towers
from cmma.sae.pairs import find_pairs
from cmma.sae.records import ActivationReader

_DEAD = -1e9
"""Correlation of a latent that never fires: it is matched last."""
_MOST_RECORDS = 2**17
"""Training records from which the correlations are estimated, at most."""


class SeparateMatched(Towers, TopK):
    """A TopK dictionary of images and one of texts, trained apart; then latent i of both is made the same concept.

    The features of a latent have nothing to do with each other in training: W_enc, W_dec and the biases of the two
    halves get no common gradient. At the end the textual halves are permuted such that Σ_i Pearson(z_i^v, z_i^t) over
    training pairs is largest (Hungarian method). Each dictionary has `n_latents` features.
    """

    reads_pairs = True

    @torch.no_grad()
    def conclude(self, reader: ActivationReader, batch_size: int, seed: int) -> None:
        """Match the dictionaries on training pairs.

        Raises:
            DataError: no two training records of different modality are of one sample.
        """
        correlation_KK = self.correlations(reader, batch_size, seed)
        order_K = torch.from_numpy(linear_sum_assignment(-correlation_KK.numpy())[1]).to(self.W_enc.device)
        start = self.feature_blocks[0]
        for matrix in (self.W_enc, self.W_dec):
            matrix[:, start:] = matrix[order_K, start:]
        self.b_enc_textual.copy_(self.b_enc_textual[order_K])

    @torch.no_grad()
    def correlations(self, reader: ActivationReader, batch_size: int, seed: int) -> Tensor:
        """Pearson correlation of each visual with each textual latent over training pairs, [K, K] float64."""
        n = min(_MOST_RECORDS, reader.n_records)
        visual, textual, n_pairs = _Moments(self.n_latents), _Moments(self.n_latents), 0
        product_KK = torch.zeros(self.n_latents, self.n_latents, dtype=torch.float64)
        for batch in islice(reader.batches(batch_size, seed, together=True), -(-n // batch_size)):
            records = batch.to(self.W_enc.device)
            pairs = find_pairs(records.sample_B, records.modality_B)
            latents_BK = self.encode(records.acts_BD, records.modality_B).double().cpu()
            visual_PK, textual_PK = latents_BK[pairs.visual_P.cpu()], latents_BK[pairs.textual_P.cpu()]
            product_KK += visual_PK.T @ textual_PK
            visual.add(visual_PK)
            textual.add(textual_PK)
            n_pairs += len(pairs)
        if n_pairs == 0:
            raise DataError("sae.arch=separate_matched needs visual and textual records of the same sample to match "
                            "its dictionaries on; cache both modalities")
        covariance_KK = product_KK / n_pairs - torch.outer(visual.sum_K, textual.sum_K) / n_pairs**2
        spread_KK = torch.outer(visual.spread(n_pairs), textual.spread(n_pairs))
        return torch.where(spread_KK > 0, covariance_KK / spread_KK.clamp_min(1e-300), _DEAD)


class _Moments:
    """Sums and sums of squares of latents."""

    def __init__(self, n_latents: int) -> None:
        self.sum_K = torch.zeros(n_latents, dtype=torch.float64)
        self.square_K = torch.zeros(n_latents, dtype=torch.float64)

    def add(self, latents_PK: Tensor) -> None:
        self.sum_K += latents_PK.sum(0)
        self.square_K += latents_PK.square().sum(0)

    def spread(self, n: int) -> Tensor:
        """Standard deviations; 0 where it is within rounding of none."""
        mean_K, raw_K = self.sum_K / n, self.square_K / n
        variance_K = raw_K - mean_K.square()
        return variance_K.where(variance_K > 1e-12 * raw_K, 0.0).sqrt()
