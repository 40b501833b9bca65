"""Attention over one shared prefix followed by independent turns, without the masked area of a dense mask.

Layout of a packed sequence (`Layout`): the image prefix, one long turn (the caption), then short turns, all of one
length (questions). The long turn sees the prefix and itself; each short turn sees the prefix and itself; all causal.
The result equals ordinary causal attention of every turn alone behind the prefix (tests/testbed/test_training.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "packed_turns"


@dataclass(frozen=True)
class Layout:
    """Tokens of the prefix and the long turn, number of short turns and tokens of each."""

    prefix: int = 39
    long: int = 49
    turns: int = 12
    short: int = 12

    @property
    def head(self) -> int:
        """Tokens of the prefix and the long turn together."""
        return self.prefix + self.long

    @property
    def total(self) -> int:
        return self.head + self.turns * self.short

    def positions(self) -> Tensor:
        """Position of every token: int64 [S]; each turn starts right after the prefix."""
        short_T = torch.arange(self.prefix, self.prefix + self.short)
        return torch.cat([torch.arange(self.head), short_T.repeat(self.turns)])


LAYOUT = Layout()


def packed_turns(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **unused: object
) -> tuple[Tensor, None]:
    """Attention function of transformers' interface; query, key, value [B, H, S, D] → ([B, S, H, D], None)."""
    p, head, turns, short = LAYOUT.prefix, LAYOUT.head, LAYOUT.turns, LAYOUT.short
    batch, heads, _, width = query.shape
    # Plain matrix products: on CPU their backward is several times faster than the fused kernel's at these sizes.
    query, key, value = (query * width**-0.5).to(value.dtype), key.to(value.dtype), value
    future = torch.ones(head, head, dtype=torch.bool, device=query.device).triu(1)
    first = query[:, :, :head] @ key[:, :, :head].transpose(-1, -2)
    first = first.masked_fill(future, float("-inf")).float().softmax(dim=-1).to(value.dtype) @ value[:, :, :head]
    in_turns = (batch, heads, turns, short, width)
    query_T, key_T, value_T = (x[:, :, head:].reshape(in_turns) for x in (query, key, value))
    to_prefix = query_T.reshape(batch, heads, -1, width) @ key[:, :, :p].transpose(-1, -2)
    to_itself = query_T @ key_T.transpose(-1, -2)
    to_itself = to_itself.masked_fill(future[:short, :short], float("-inf"))
    scores = torch.cat([to_prefix.reshape(batch, heads, turns, short, p), to_itself], dim=-1)
    weight = scores.float().softmax(dim=-1).to(value.dtype)
    from_prefix = weight[..., :p].reshape(batch, heads, -1, p) @ value[:, :, :p]
    from_itself = weight[..., p:] @ value_T
    rest = from_prefix + from_itself.reshape(batch, heads, -1, width)
    return torch.cat([first, rest], dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_turns)
