"""Cross-modal attention of the encoder (named in the paper's section 3.1.1; `docs/paper.md` gives it an equation)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CrossModalAttention(nn.Module):
    """One low-rank head from a record to a few context vectors of the other modality of the same sample.

    h ↦ h + g · softmax((W_q h)ᵀ (W_k C) / √r) (W_v C)ᵀ W_o, with the gate g = 0 at first: until it moves, the
    autoencoder is the plain one to the bit.

    Args:
        d: record width.
        rank: width r of the head.
        generator: draws the initial weights; None: the global one.
    """

    def __init__(self, d: int, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        def draw(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) * columns**-0.5)
        self.query, self.key, self.value = draw(rank, d), draw(rank, d), draw(rank, d)
        self.out = draw(d, rank)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, h_BD: Tensor, context_BCD: Tensor) -> Tensor:
        """Standardised records [B, d] and contexts [B, C, d] → records with what they attended to, [B, d]."""
        query_BR = h_BD @ self.query.T
        key_BCR, value_BCR = context_BCD @ self.key.T, context_BCD @ self.value.T
        score_BC = torch.einsum("br,bcr->bc", query_BR, key_BCR) * query_BR.shape[1] ** -0.5
        attended_BR = torch.einsum("bc,bcr->br", score_BC.softmax(dim=1), value_BCR)
        return h_BD + self.gate * (attended_BR @ self.out.T)
