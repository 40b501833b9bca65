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
    return F.embedding_bag(kept.indices_Bk, weight_KD, per_sample_weights=values_Bk, mode="sum")


def gather_dot(x_BD: Tensor, kept: Kept, weight_KD: Tensor) -> Tensor:
    """(x Wᵀ) at the kept latents: [B, D], [K, D] → [B, k]."""
    n_records, k = kept.indices_Bk.shape
    pattern_BK = torch.sparse_csr_tensor(
        torch.arange(0, n_records * k + 1, k, device=x_BD.device), kept.indices_Bk.flatten(),
        x_BD.new_zeros(n_records * k), (n_records, kept.n_latents), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern_BK, x_BD, weight_KD.T, beta=0.0).values().view(n_records, k)


def scatter_sum(values_Bk: Tensor, kept: Kept, x_BD: Tensor) -> Tensor:
    """Aᵀ x: [B, k], [B, D] → [K, D]."""
    first_K, entry_N = kept.by_latent
    record_N = entry_N // kept.indices_Bk.shape[1]
    return F.embedding_bag(record_N, x_BD, offsets=first_K, per_sample_weights=values_Bk.flatten()[entry_N],
                           mode="sum", include_last_offset=True)
