"""Stage 2 of toy_llava: the whole model on packed turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from cmma.testbed.training.llava_data import IGNORE, TurnBatches, TurnWeights
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.packed_attention import LAYOUT, NAME


def train_turns(
    model: LlavaForConditionalGeneration,
    recipe: Recipe,
    seed: int,
    checkpoint: Path,
    preview: Callable[[], None],
    compile_layers: bool = True,
) -> float:
    """Train `model` in place on captions and questions of the training split; returns minutes."""
    language_model = model.model.language_model
    language_model.set_attn_implementation(NAME)
    if compile_layers:
        for layer in language_model.layers:
            layer.compile(dynamic=False)
    model.train()
    positions = LAYOUT.positions().expand(recipe.batch, -1)
    weights = TurnWeights()

    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        counted = batch["targets"] != IGNORE
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BSD = model.model(
                input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], position_ids=positions,
                use_cache=False,
            ).last_hidden_state  # fmt: skip
            logits_TV = model.lm_head(hidden_BSD[counted]).float()
        target_T, weight_T = batch["targets"][counted], batch["weights"][counted]
        loss_T = F.cross_entropy(logits_TV, target_T, reduction="none")
        right_T = (logits_TV.argmax(-1) == target_T).float()
        numbers = {
            name: right_T[weight_T == weight].mean().item()
            for name, weight in (("answer", weights.answer), ("caption", weights.caption))
        }
        return (loss_T * weight_T).sum() / weight_T.sum(), numbers

    minutes = train(model, recipe, TurnBatches(recipe.batch, recipe.steps, seed), loss, checkpoint, preview)
    language_model.set_attn_implementation("sdpa")
    model.eval()
    return minutes
