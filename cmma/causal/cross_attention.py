"""Probabilities of a U-Net's cross-attention, which its fast attention does not keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class AttentionSums:
    """Sums over steps of each block's cross-attention, averaged over heads: block → Float[B, P, S] on the CPU.

    Only the prompts' side of guided generation is noted: the last B rows of each pass.
    """

    def __init__(self, n_prompts: int) -> None:
        self.n_prompts = n_prompts
        self.sums: dict[int, Tensor] = {}

    def add(self, block: int, probabilities_BHPS: Tensor) -> None:
        """Note one pass of a block."""
        mean_BPS = probabilities_BHPS[-self.n_prompts :].mean(dim=1).float().cpu()
        self.sums[block] = self.sums.get(block, 0) + mean_BPS

    def maps(self, side: int) -> Tensor:
        """DAAM: bicubic to side × side, at least 0, mean over blocks: Float[B, S, side, side]."""
        resized = []
        for sum_BPS in self.sums.values():
            width = round(sum_BPS.shape[1] ** 0.5)
            grid_BSYX = sum_BPS.transpose(1, 2).unflatten(2, (width, width))
            if width != side:
                grid_BSYX = F.interpolate(grid_BSYX, size=(side, side), mode="bicubic")
            resized.append(grid_BSYX.clamp_min(0))
        return torch.stack(resized).mean(dim=0)


@contextmanager
def noting_attention(model: Any, n_prompts: int) -> Iterator[AttentionSums]:
    """Within the block, every cross-attention of the U-Net also leaves its probabilities; images stay the same.

    Args:
        model: a diffusion model. n_prompts: B of the images that are made.
    """
    sums = AttentionSums(n_prompts)
    modules = [model.site(f"unet.blocks.{block}.attn2_out").module for block in range(model.n_layers)]
    before = [module.processor for module in modules]
    for block, module in enumerate(modules):
        module.set_processor(_Noting(module.processor, sums, block))
    try:
        yield sums
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)


class _Noting:
    """A processor that computes the probabilities beside the one whose output is used."""

    def __init__(self, processor: Any, sums: AttentionSums, block: int) -> None:
        self.processor, self.sums, self.block = processor, sums, block

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        text_BSD = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query_BHPd, key_BHSd = (
            project(states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project, states in ((attn.to_q, hidden_states), (attn.to_k, text_BSD))
        )
        scores_BHPS = query_BHPd @ key_BHSd.transpose(2, 3) * attn.scale
        if attention_mask is not None:
            scores_BHPS = scores_BHPS + attention_mask.view(len(scores_BHPS), -1, 1, scores_BHPS.shape[-1])
        self.sums.add(self.block, scores_BHPS.softmax(dim=-1))
        return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
