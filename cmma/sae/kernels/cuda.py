"""The sparse products as Triton kernels; see `cmma.sae.kernels.sparse`.

Each program makes one row of the result over `_COLUMNS` columns, in a fixed order of summation. The rows are the fast
axis of the grid: the programs that run at the same time read the same few columns of the dense matrix, and those of all
131,072 features (32 MB) stay in the L2 cache of a data-centre GPU, so that the matrix is read from memory about once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmma.sae.kernels.kept import Kept

_COLUMNS = 64
"""Columns of a program."""
_ENTRIES = 16
"""Rows of the dense matrix that a program reads at once."""


@triton.jit
def _gather_sum(out, values, indices, weight, k, width, ACC: tl.constexpr, J: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * D + tl.arange(0, D)
    sum_D = tl.zeros([D], ACC)
    for first in range(0, k, J):
        entry_J = first + tl.arange(0, J)
        index_J = tl.load(indices + row * k + entry_J, mask=entry_J < k, other=0)
        value_J = tl.load(values + row * k + entry_J, mask=entry_J < k, other=0).to(ACC)
        inside_JD = (entry_J < k)[:, None] & (column_D < width)[None, :]
        tile_JD = tl.load(weight + index_J[:, None] * width + column_D[None, :], mask=inside_JD, other=0)
        sum_D += tl.sum(value_J[:, None] * tile_JD, axis=0)
    tl.store(out + row * width + column_D, sum_D, mask=column_D < width)


@triton.jit
def _gather_dot(parts, x, indices, weight, n_rows, k, width, ACC: tl.constexpr, J: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * D + tl.arange(0, D)
    x_D = tl.load(x + row * width + column_D, mask=column_D < width, other=0).to(ACC)
    part = parts + (tl.program_id(1) * n_rows + row) * k
    for first in range(0, k, J):
        entry_J = first + tl.arange(0, J)
        index_J = tl.load(indices + row * k + entry_J, mask=entry_J < k, other=0)
        inside_JD = (entry_J < k)[:, None] & (column_D < width)[None, :]
        tile_JD = tl.load(weight + index_J[:, None] * width + column_D[None, :], mask=inside_JD, other=0)
        tl.store(part + entry_J, tl.sum(x_D[None, :] * tile_JD, axis=1), mask=entry_J < k)


@triton.jit
def _scatter_sum(out, values, first_of, entries, x, k, width, ACC: tl.constexpr, J: tl.constexpr, D: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * D + tl.arange(0, D)
    sum_D = tl.zeros([D], ACC)
    last = tl.load(first_of + latent + 1)
    for first in range(tl.load(first_of + latent), last, J):
        place_J = first + tl.arange(0, J)
        entry_J = tl.load(entries + place_J, mask=place_J < last, other=0)
        value_J = tl.load(values + entry_J, mask=place_J < last, other=0).to(ACC)
        inside_JD = (place_J < last)[:, None] & (column_D < width)[None, :]
        tile_JD = tl.load(x + (entry_J // k)[:, None] * width + column_D[None, :], mask=inside_JD, other=0)
        sum_D += tl.sum(value_J[:, None] * tile_JD, axis=0)
    tl.store(out + latent * width + column_D, sum_D, mask=column_D < width)


def gather_sum(values_Bk: Tensor, kept: Kept, weight_KD: Tensor) -> Tensor:
    """A W: [B, k], [K, D] → [B, D]."""
    (n_rows, k), width = kept.indices_Bk.shape, weight_KD.shape[1]
    out_BD = weight_KD.new_empty(n_rows, width)
    tiles = _tiles(width, weight_KD)
    if out_BD.numel():
        _gather_sum[n_rows, triton.cdiv(width, tiles["D"])](
            out_BD, values_Bk.contiguous(), kept.indices_Bk.contiguous(), weight_KD.contiguous(), k, width, **tiles)
    return out_BD


def gather_dot(x_BD: Tensor, kept: Kept, weight_KD: Tensor) -> Tensor:
    """(x Wᵀ) at the kept latents: [B, D], [K, D] → [B, k]."""
    (n_rows, k), width = kept.indices_Bk.shape, weight_KD.shape[1]
    tiles = _tiles(width, weight_KD)
    n_parts = triton.cdiv(width, tiles["D"])
    parts_SBk = weight_KD.new_empty(n_parts, n_rows, k)
    if parts_SBk.numel():
        _gather_dot[n_rows, n_parts](
            parts_SBk, x_BD.contiguous(), kept.indices_Bk.contiguous(), weight_KD.contiguous(), n_rows, k, width,
            **tiles)
    return parts_SBk.sum(0)


def scatter_sum(values_Bk: Tensor, kept: Kept, x_BD: Tensor) -> Tensor:
    """Aᵀ x: [B, k], [B, D] → [K, D]."""
    k, width = kept.indices_Bk.shape[1], x_BD.shape[1]
    out_KD = x_BD.new_empty(kept.n_latents, width)
    tiles = _tiles(width, x_BD)
    if out_KD.numel():
        _scatter_sum[kept.n_latents, triton.cdiv(width, tiles["D"])](
            out_KD, values_Bk.contiguous(), *kept.by_latent, x_BD.contiguous(), k, width, **tiles)
    return out_KD


def _tiles(width: int, like: Tensor) -> dict[str, Any]:
    accumulator = tl.float64 if like.dtype == torch.float64 else tl.float32
    return {"ACC": accumulator, "J": _ENTRIES, "D": min(_COLUMNS, triton.next_power_of_2(max(1, width)))}
