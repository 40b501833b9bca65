"""Training of toy_llava and toy_llava_large: the vision tower first, then the whole model on packed turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from cmma.testbed.training.evaluate_llava import measure
from cmma.testbed.training.job import Job
from cmma.testbed.training.llava_data import IGNORE, KIND_WEIGHTS, TurnBatches, TurnWeights
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.packed_attention import LAYOUT, NAME
from cmma.testbed.training.toy_llava import build_config, build_model, save_folder
from cmma.testbed.training.vision import pretrain_vision


def train_turns(
    model: LlavaForConditionalGeneration,
    recipe: Recipe,
    seed: int,
    checkpoint: Path,
    preview: Callable[[], None],
) -> float:
    """Train `model` in place on captions and questions of the training split; returns minutes."""
    language_model = model.model.language_model
    language_model.set_attn_implementation(NAME)
    for layer in language_model.layers:
        layer.compile(dynamic=False)
    model.train()
    positions = LAYOUT.positions().to(model.device).expand(recipe.batch, -1)
    weights = TurnWeights()

    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        counted = batch["targets"] != IGNORE
        with torch.autocast(counted.device.type, torch.bfloat16):
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


def _job(name: str, width: int, vision: Recipe, turns: Recipe) -> Job:
    def train_both(
        model: LlavaForConditionalGeneration, out: Path, seed: int, preview: Callable[[], None]
    ) -> dict[str, float]:
        return {
            "vision": pretrain_vision(model.model.vision_tower, vision, seed, out / "vision.safetensors"),
            "turns": train_turns(model, turns, seed, out / "turns.safetensors", preview),
        }

    return Job(
        name=name, build=lambda seed: build_model(seed, build_config(width=width)),
        stages={"vision": vision, "turns": turns}, train=train_both, store=save_folder, measure=measure,
        notes={"question_kinds": KIND_WEIGHTS},
    )  # fmt: skip


def _turns(steps: int) -> Recipe:
    return Recipe(steps=steps, batch=24, lr=2e-3, slow=0.3, slow_prefix="model.vision_tower", warmup=150)


TOY_LLAVA = _job("toy_llava", 96, Recipe(steps=900, batch=128, lr=2e-3), _turns(3000))
TOY_LLAVA_LARGE = _job("toy_llava_large", 128, Recipe(steps=900, batch=128, lr=2e-3), _turns(2400))
