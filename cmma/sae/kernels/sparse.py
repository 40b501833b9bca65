"""Sparse codes [B, K] as k values and indices per record, and their three products, each the gradient of the others.

    gather_sum   A W       [B, k] · [K, D] → [B, D]   decoding
    gather_dot   (x Wᵀ)|A  [B, D] · [K, D] → [B, k]   encoding, of the kept latents alone
    scatter_sum  Aᵀ x      [B, k] · [B, D] → [K, D]   gradients of both weights; sums per latent

Each costs 2·B·k·D operations where its dense counterpart costs 2·B·K·D. None adds with atomics: every number is one sum
in a fixed order, so that a run repeats to the bit. Sums are float32 or wider whatever is multiplied.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmma.sae.kernels import eager
from cmma.sae.kernels.kept import Kept


class SparseLatents(NamedTuple):
    """Latents [B, K] of which at most k per record are not zero."""

    values_Bk: Tensor
    """Activations, 0 where a record keeps fewer than k."""
    kept: Kept
    """Whose activations they are."""

    def dense(self) -> Tensor:
        """[B, K] with all the zeros."""
        zeros_BK = self.values_Bk.new_zeros(len(self.values_Bk), self.kept.n_latents)
        return zeros_BK.scatter_add(1, self.kept.indices_Bk, self.values_Bk)


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_Bk: Tensor, weight_KD: Tensor, kept: Kept) -> Tensor:
        ctx.save_for_backward(values_Bk, weight_KD)
        ctx.kept = kept
        return _backend(weight_KD).gather_sum(values_Bk, kept, weight_KD)

    @staticmethod
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        values_Bk, weight_KD = ctx.saved_tensors
        to_values, to_weight, _ = ctx.needs_input_grad
        return (_GatherDot.apply(grad_BD, weight_KD, ctx.kept, None) if to_values else None,
                _ScatterSum.apply(values_Bk, grad_BD, ctx.kept) if to_weight else None, None)


class _GatherDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, weight_KD: Tensor, kept: Kept, known_Bk: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BD, weight_KD)
        ctx.kept = kept
        return _backend(weight_KD).gather_dot(x_BD, kept, weight_KD) if known_Bk is None else known_Bk.view_as(known_Bk)

    @staticmethod
    def backward(ctx: Any, grad_Bk: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, weight_KD = ctx.saved_tensors
        to_x, to_weight, *_ = ctx.needs_input_grad
        return (_GatherSum.apply(grad_Bk, weight_KD, ctx.kept) if to_x else None,
                _ScatterSum.apply(grad_Bk, x_BD, ctx.kept) if to_weight else None, None, None)


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_Bk: Tensor, x_BD: Tensor, kept: Kept) -> Tensor:
        ctx.save_for_backward(values_Bk, x_BD)
        ctx.kept = kept
        return _backend(x_BD).scatter_sum(values_Bk, kept, x_BD)

    @staticmethod
    def backward(ctx: Any, grad_KD: Tensor) -> tuple[Tensor | None, ...]:
        values_Bk, x_BD = ctx.saved_tensors
        to_values, to_x, _ = ctx.needs_input_grad
        return (_GatherDot.apply(x_BD, grad_KD, ctx.kept, None) if to_values else None,
                _GatherSum.apply(values_Bk, grad_KD, ctx.kept) if to_x else None, None)


def gather_sum(latents: SparseLatents, weight_KD: Tensor) -> Tensor:
    """Σ_j v_bj W[i_bj], [B, D]: the sparse decoder, with gradients to the values and to W."""
    result: Tensor = _GatherSum.apply(latents.values_Bk, weight_KD, latents.kept)
    return result


def gather_dot(x_BD: Tensor, weight_KD: Tensor, kept: Kept, known_Bk: Tensor | None = None) -> Tensor:
    """⟨x_b, W[i_bj]⟩, [B, k], with gradients to x and W.

    Args:
        known_Bk: the result, where the caller has it already: then only the gradients are computed.
    """
    result: Tensor = _GatherDot.apply(x_BD, weight_KD, kept, known_Bk)
    return result


def scatter_sum(latents: SparseLatents, x_BD: Tensor) -> Tensor:
    """Σ_b a_bi x_b for every latent i, [K, D], with gradients to the values and to x."""
    result: Tensor = _ScatterSum.apply(latents.values_Bk, x_BD, latents.kept)
    return result


def _backend(tensor: Tensor) -> ModuleType:
    if not (tensor.is_cuda and _has_triton()):
        return eager
    from cmma.sae.kernels import cuda

    return cuda


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
