"""Attention analysis: where each head of the language model looks, and what happens without some heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from cmma.baselines.ground import Ground, Images, Mentions, NotApplicable
from cmma.baselines.methods.base import Method, Reading, strongest
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.mitigation.published import head_ablation
from cmma.mitigation.steering import Steering
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder


class AttentionHeads(Method):
    """Units are heads, of all layers; a head's map is the attention that the prompt's end pays to the patches."""

    def __init__(self, ground: Ground) -> None:
        super().__init__("attention heads", ground)

    @torch.no_grad()
    def read(self, images: Images) -> Reading:
        """Attention weights; the image scores as its strongest patch does."""
        model, size, parts = self.ground.model, self.ground.config.batch_size, []
        for start in range(0, len(images.queries), size):
            batch = model.collate(images.samples[start : start + size])
            position_BP, end_B = model.image_positions(batch).cpu(), batch.prompt_end.cpu()
            with attention_weights(model) as weights:
                model(**batch)
            rows_B = torch.arange(len(end_B))
            maps = [weight_BHSS[rows_B, :, end_B].gather(2, position_BP[:, None].expand(-1, weight_BHSS.shape[1], -1))
                    for weight_BHSS in weights]
            parts.append(torch.cat(maps, dim=1).transpose(1, 2))
        return strongest(torch.cat(parts).numpy())

    def steerings(self, mentions: Mentions) -> list[Steering] | NotApplicable:
        """Heads that speak most for hallucinated words, by gradient × output, set to zero."""
        return [head_ablation(self.ground.model, mentions.every, SHAPES_VOCABULARY, self.ground.config.mitigation)]

    def dictionary(self) -> SparseAutoencoder | NotApplicable:
        """It has none."""
        return NotApplicable("a head can be silenced or turned up; it holds no value of a factor to put in")


@contextmanager
def attention_weights(model: MultimodalModel) -> Iterator[list[Tensor]]:
    """Weights [B, heads, S, S] of every attention of the answer's stream, in the order in which they are computed.

    The fused kernels give none, so attention is computed step by step within the block.
    """
    module: Any = model.module
    found: list[Tensor] = []

    def keep(attention: Any, args: Any, output: Any) -> None:
        found.append(output[1].float().cpu())

    before = module.config._attn_implementation
    with ExitStack() as stack:
        module.set_attn_implementation("eager")
        stack.callback(module.set_attn_implementation, before)
        for attention in model.attentions.values():
            if attention.row.queries == attention.row.keys == model.answer_stream:
                stack.callback(attention.module.register_forward_hook(keep).remove)
        yield found
