"""The linear part of an encoder, of all latents or of those alone that a record keeps."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from cmma.sae.kernels.kept import Kept
from cmma.sae.kernels.sparse import gather_dot


class LinearEncoder(NamedTuple):
    """Pre-activations W (x − o) + b of a batch, not computed yet.

    Where only a few of them are used, `dense` tells which under `torch.no_grad`, and `at` gives these their gradient:
    2·d·k operations per record for the gradient of W, where the dense one costs 2·d·K.
    """

    input_BD: Tensor
    """x."""
    weight_KD: Tensor
    """W."""
    bias_K: Tensor
    """b, or [M, K] with `share_BM`."""
    offset_D: Tensor | None = None
    """o; None: zero."""
    share_BM: Tensor | None = None
    """How much of each row of b a record gets; None: b is one row for all."""

    def dense(self) -> Tensor:
        """[B, K].

        o enters through the bias, W x + (b − W o): the same number, and the gradient of o is a matrix-vector product
        where the textbook form costs a sixth matrix product per step.
        """
        if self.share_BM is not None:
            return F.linear(self.input_BD, self.weight_KD) + self.share_BM @ self.bias_K
        bias_K = self.bias_K if self.offset_D is None else self.bias_K - self.weight_KD @ self.offset_D
        return F.linear(self.input_BD, self.weight_KD, bias_K)

    def at(self, kept: Kept, known_Bk: Tensor) -> Tensor:
        """[B, k] with gradients to everything, given the numbers themselves from `dense`.

        The gradient reaches W through x − o and o through the bias, each by its shorter way.
        """
        bias_K, input_BD = self.bias_K, self.input_BD
        if self.offset_D is not None:
            bias_K = bias_K - self.weight_KD.detach() @ self.offset_D
            input_BD = input_BD - self.offset_D.detach()
        share_BM = input_BD.new_ones(len(input_BD), 1) if self.share_BM is None else self.share_BM
        bias_KM = bias_K.view(-1, bias_K.shape[-1]).T
        bias_Bk = gather_dot(share_BM, bias_KM.contiguous(), kept)
        return gather_dot(input_BD, self.weight_KD, kept, known_Bk) + (bias_Bk - bias_Bk.detach())
