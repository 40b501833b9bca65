"""Which latents a batch of records keeps."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class ByLatent(NamedTuple):
    """The kept latents of a batch in the order of the latents: what sums over records walk along."""

    first_K: Tensor
    """[K + 1] where each latent's entries start in `entry_N`; the last number is their count."""
    entry_N: Tensor
    """[B·k] positions in the flattened indices; within a latent in the order of the records."""


class Kept:
    """Which k latents each record keeps.

    Args:
        indices_Bk: [B, k] latents in any order. A latent that stands for nothing (a record that keeps fewer) has the
            value 0 where values are given.
        n_latents: K.
    """

    def __init__(self, indices_Bk: Tensor, n_latents: int) -> None:
        self.indices_Bk, self.n_latents = indices_Bk, n_latents

    @cached_property
    def first_B(self) -> Tensor:
        """[B + 1] where each record's entries start in the flattened indices; the last number is their count."""
        n_records, k = self.indices_Bk.shape
        return torch.arange(0, n_records * k + 1, k, device=self.indices_Bk.device)

    @cached_property
    def by_latent(self) -> ByLatent:
        """The reverse index, made when first asked for."""
        latent_N, entry_N = self.indices_Bk.flatten().sort(stable=True)
        latents_K = torch.arange(self.n_latents + 1, device=latent_N.device)
        return ByLatent(torch.searchsorted(latent_N, latents_K), entry_N)
