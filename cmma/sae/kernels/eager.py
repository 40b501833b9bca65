"""The sparse products in plain PyTorch, for CPU and for what has no Triton; see `cmma.sae.kernels.sparse`.

`embedding_bag` is the fastest sparse-times-dense product on CPU, in both directions: for Aᵀ a bag is a latent, and what
is in it are the records that keep it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from cmma.sae.kernels.kept import Kept

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def gather_sum(values_Bk: Tensor, kept: Kept, weight_KD: Tensor) -> Tensor:
    """A W: [B, k], [K, D] → [B, D]."""
    return _sum_bags(kept.indices_Bk.flatten(), values_Bk.flatten(), kept.first_B, weight_KD)


def gather_dot(x_BD: Tensor, kept: Kept, weight_KD: Tensor) -> Tensor:
    """(x Wᵀ) at the kept latents: [B, D], [K, D] → [B, k]."""
    n_records, k = kept.indices_Bk.shape
    pattern_BK = torch.sparse_csr_tensor(
        kept.first_B, kept.indices_Bk.flatten(),
        x_BD.new_zeros(n_records * k), (n_records, kept.n_latents), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern_BK, x_BD, weight_KD.T, beta=0.0).values().view(n_records, k)


def scatter_sum(values_Bk: Tensor, kept: Kept, x_BD: Tensor) -> Tensor:
    """Aᵀ x: [B, k], [B, D] → [K, D]."""
    first_K, entry_N = kept.by_latent
    record_N = entry_N // kept.indices_Bk.shape[1]
    return _sum_bags(record_N, values_Bk.flatten()[entry_N], first_K, x_BD)


def _sum_bags(row_N: Tensor, values_N: Tensor, first_G: Tensor, table_RD: Tensor) -> Tensor:
    """Σ values · table[row] of each bag, [G − 1, D]; `first_G` says where bags begin, and where the last one ends."""
    if not table_RD.shape[1]:  # data without labels: under several threads embedding_bag fails in PyTorch
        return table_RD.new_zeros(len(first_G) - 1, 0)
    return F.embedding_bag(row_N, table_RD, offsets=first_G, per_sample_weights=values_N, mode="sum",
                           include_last_offset=True)
