"""Image–text pairs of a model that has many tokens of each: everything known of a sample, pooled over its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmma.features.specialisation import MODALITIES, ActivationSums
from cmma.sae.records import RecordBatch


@dataclass(frozen=True, eq=False)
class PooledPairs:
    """Samples that have both an image and a text, one row each; axis M is (visual, textual).

    Attributes:
        sample_N: index of each sample in the data set.
        strongest_MNK: largest activation of each latent over the tokens of a modality.
        mean_MNK: mean activation over them.
        acts_MND: mean record over them, in the model's units.
    """

    sample_N: Tensor
    strongest_MNK: Tensor
    mean_MNK: Tensor
    acts_MND: Tensor

    def __len__(self) -> int:
        return len(self.sample_N)

    def with_texts_of(self, partner_N: Tensor) -> PooledPairs:
        """The same images, each with the text of another sample: `partner_N[i]` gives it to image i."""
        def swapped(values_MNx: Tensor) -> Tensor:
            return torch.stack([values_MNx[0], values_MNx[1, partner_N]])

        return PooledPairs(
            self.sample_N, swapped(self.strongest_MNK), swapped(self.mean_MNK), swapped(self.acts_MND))


class PairPool:
    """Gathers `PooledPairs` from batches of records. Every token was encoded by itself: no mask is shared by a pair.

    Args:
        n_samples: the first so many samples that come are kept.
        n_latents, d: sizes of the dictionary.
    """

    def __init__(self, n_samples: int, n_latents: int, d: int) -> None:
        self.sums = ActivationSums(n_samples, n_latents)
        self.acts_NMD = torch.zeros(n_samples, 2, d)
        self.row_of: dict[int, int] = {}

    def add(self, records: RecordBatch, latents_BK: Tensor) -> None:
        """Add records with their latents [B, K]. Joint views are left out."""
        for sample in records.sample_B.unique_consecutive().tolist():
            if len(self.row_of) < len(self.acts_NMD):
                self.row_of.setdefault(sample, len(self.row_of))
        row_B = torch.tensor([self.row_of.get(sample, -1) for sample in records.sample_B.tolist()])
        kept_B = row_B >= 0
        row_B, modality_B = row_B[kept_B], records.modality_B.cpu()[kept_B]
        self.sums.add(latents_BK.cpu()[kept_B], modality_B, row_B)
        acts_BD = records.acts_BD.float().cpu()[kept_B]
        for axis, modality in enumerate(MODALITIES):
            own_B = modality_B == int(modality)
            self.acts_NMD[:, axis].index_add_(0, row_B[own_B], acts_BD[own_B])

    def pairs(self) -> PooledPairs:
        """The samples with records of both modalities, perhaps none."""
        tokens_NM = self.sums.tokens_NM
        rows = (tokens_NM > 0).all(1).nonzero()[:, 0]
        sample_N = torch.tensor(list(self.row_of), dtype=torch.int64)
        return PooledPairs(
            sample_N[rows], self.sums.maxima_NMK[rows].transpose(0, 1), self.sums.means_NMK[rows].transpose(0, 1),
            (self.acts_NMD[rows] / tokens_NM[rows, :, None]).transpose(0, 1),
        )
