"""Let parts of a U-Net read another prompt than the rest of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def reading(
    model: Any, text_BSD: Tensor, blocks: Sequence[int] | None = None, tokens_BP: Tensor | None = None,
    first_step: int = 0,
) -> Iterator[None]:  # fmt: skip
    """Within the block, images are made with another text in some cross-attentions, on the prompt's side of guidance.

    Where it is read, `attn2.to_k` and `attn2.to_v` get the other text (LocoGen's swap of prompt embeddings).

    Args:
        model: a diffusion model that makes images of B prompts; the U-Net's batch has 2 B rows (the empty prompts
            first) or, without guidance, B.
        text_BSD: the other text, as `encode_prompts` gives it.
        blocks: U-Net blocks, None = all.
        tokens_BP: bool, spatial tokens that read it; None = all. Blocks must then have maps of one size.
        first_step: calls of a block before this one are left alone (with samplers of one call per step, the step).
    """
    with ExitStack() as stack:
        for block in range(model.n_layers) if blocks is None else blocks:
            module = model.site(f"unet.blocks.{block}.attn2_out").module
            handle = module.register_forward_hook(_Reading(text_BSD, tokens_BP, first_step), with_kwargs=True)
            stack.callback(handle.remove)
        yield


class _Reading:
    """Computes a cross-attention once more with the other text, and puts its output where that is to be read."""

    def __init__(self, text_BSD: Tensor, tokens_BP: Tensor | None, first_step: int) -> None:
        self.text_BSD, self.tokens_BP, self.wait = text_BSD, tokens_BP, first_step

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if self.wait > 0:
            self.wait -= 1
            return output
        first = len(output) - len(self.text_BSD)  # the prompts' rows come last
        again = {**kwargs, "encoder_hidden_states": self.text_BSD.to(output)}
        read_BPD = module.forward(args[0][first:], **again)
        if self.tokens_BP is not None:
            read_BPD = torch.where(self.tokens_BP.to(output.device)[..., None], read_BPD, output[first:])
        return torch.cat([output[:first], read_BPD])
