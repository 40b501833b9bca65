"""Pairs of records: one visual and one textual record of the same sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cmma.modality import Modality


class Pairs(NamedTuple):
    """Rows of a batch that belong together: `visual_P[p]` and `textual_P[p]` are of one sample."""

    visual_P: Tensor
    textual_P: Tensor

    def __len__(self) -> int:
        return len(self.visual_P)


def find_pairs(sample_B: Tensor, modality_B: Tensor) -> Pairs:
    """Match the records of a batch one to one: the n-th visual with the n-th textual record of each sample.

    What has no counterpart in the batch is in no pair, and joint views never are. Readers keep the records of a sample
    adjacent when they are asked to (`ActivationReader.batches(together=True)`), so few are left over.
    """
    visual_V, textual_T = ((modality_B == m).nonzero()[:, 0] for m in (Modality.VISUAL, Modality.TEXTUAL))
    visual_V = visual_V[sample_B[visual_V].argsort(stable=True)]
    textual_T = textual_T[sample_B[textual_T].argsort(stable=True)]
    key_V, key_T = _numbered(sample_B[visual_V]), _numbered(sample_B[textual_T])
    if not len(key_V) or not len(key_T):
        return Pairs(visual_V[:0], textual_T[:0])
    # (sample, number) as one integer; both lists ascend.
    span = int(torch.cat([key_V[:, 1], key_T[:, 1]]).max()) + 1
    flat_V, flat_T = key_V[:, 0] * span + key_V[:, 1], key_T[:, 0] * span + key_T[:, 1]
    place_V = torch.searchsorted(flat_T, flat_V).clamp(max=len(flat_T) - 1)
    matched_V = flat_T[place_V] == flat_V
    return Pairs(visual_V[matched_V], textual_T[place_V[matched_V]])


def _numbered(sample_N: Tensor) -> Tensor:
    """Ascending samples → [N, 2]: the sample and which of its records, from 0, each is."""
    n = len(sample_N)
    place_N = torch.arange(n, device=sample_N.device)
    first_N = torch.searchsorted(sample_N, sample_N)
    return torch.stack([sample_N, place_N - first_N], dim=1)
