"""Training of toy_clip and toy_clip_large: patch labels for the image tower, then contrast for both."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from cmma.testbed import language
from cmma.testbed.generate import question_rng
from cmma.testbed.render import render
from cmma.testbed.scenes import Scene
from cmma.testbed.training.evaluate_clip import measure
from cmma.testbed.training.job import Job
from cmma.testbed.training.llava_data import FACTOR_LEVELS, VisionBatches, pixel_values
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.toy_clip import CONTEXT, build_config, build_model, build_tokenizer, save_folder
from cmma.testbed.training.vision import factor_loss
from cmma.testbed.world import sample_scenes

MAX_LOGIT_SCALE = float(np.log(100))
SHORT_SHARE = 0.25


class CaptionBatches(Dataset):
    """Step → (pixel values [B, 3, 48, 48], token ids [B, 48]) of the training split."""

    def __init__(self, batch: int, steps: int, seed: int) -> None:
        self.batch, self.steps, self.seed = batch, steps, seed
        self.tokenizer = build_tokenizer()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        start = step * self.batch
        scenes = sample_scenes(self.batch, "train", self.seed, start)
        texts = [
            training_text(scenes.scene(b), question_rng(self.seed, "train captions", start + b))
            for b in range(self.batch)
        ]
        ids = self.tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")["input_ids"]
        return pixel_values(render(scenes)[0]), ids


def training_text(scene: Scene, rng: random.Random) -> str:
    """The caption, or for a quarter of the images only some of its noun phrases, so that short texts have a meaning."""
    if rng.random() >= SHORT_SHARE:
        return language.caption(scene)
    some = sorted(rng.sample(range(len(scene)), rng.randint(1, len(scene))))
    return ", ".join(language.noun_phrase(scene[i]) for i in some) + "."


class ImagePatchReader(nn.Module):
    """open_clip's image tower with one linear head per factor on every patch before pooling."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        width = visual.ln_post.normalized_shape[0]
        self.heads = nn.ModuleDict({name: nn.Linear(width, levels) for name, levels in FACTOR_LEVELS.items()})

    def forward(self, pixels_NCYX: Tensor) -> dict[str, Tensor]:
        hidden_NPD = self.visual.forward_intermediates(
            pixels_NCYX, indices=1, intermediates_only=True, normalize_intermediates=True, output_fmt="NLC"
        )["image_intermediates"][-1]
        return {name: head(hidden_NPD) for name, head in self.heads.items()}


def pretrain_image_tower(model: open_clip.CLIP, recipe: Recipe, seed: int, checkpoint: Path) -> float:
    """Train the image tower in place on patch labels; returns minutes."""
    reader = ImagePatchReader(model.visual)
    reader.train()
    with sdpa_kernel(SDPBackend.MATH):  # on CPU its backward is faster than the fused kernel's at these sizes
        batches = VisionBatches(recipe.batch, recipe.steps, seed)
        return train(reader, recipe, batches, lambda batch: factor_loss(reader, batch), checkpoint)


def train_contrast(
    model: open_clip.CLIP, recipe: Recipe, seed: int, checkpoint: Path, preview: Callable[[], None]
) -> float:
    """Train both towers in place with the symmetric contrastive loss of CLIP; returns minutes."""
    model.train()

    def loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        pixels, ids = batch
        with torch.autocast(ids.device.type, torch.bfloat16):
            images_BD, texts_BD = model.encode_image(pixels), model.encode_text(ids)
        images_BD, texts_BD = F.normalize(images_BD.float(), dim=-1), F.normalize(texts_BD.float(), dim=-1)
        logits_BB = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * images_BD @ texts_BD.T
        target = torch.arange(len(ids), device=ids.device)
        right = (logits_BB.argmax(1) == target).float().mean().item()
        scale = model.logit_scale.exp().item()
        both = (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2
        return both, {"right": right, "scale": scale}

    with sdpa_kernel(SDPBackend.MATH):
        minutes = train(model, recipe, CaptionBatches(recipe.batch, recipe.steps, seed), loss, checkpoint, preview)
    model.eval()
    return minutes


def _job(name: str, width: int, layers: int, vision: Recipe, contrast: Recipe) -> Job:
    config = build_config(width, layers)

    def train_both(model: open_clip.CLIP, out: Path, seed: int, preview: Callable[[], None]) -> dict[str, float]:
        return {
            "vision": pretrain_image_tower(model, vision, seed, out / "vision.safetensors"),
            "contrast": train_contrast(model, contrast, seed, out / "contrast.safetensors", preview),
        }

    return Job(
        name=name, build=lambda seed: build_model(seed, config), stages={"vision": vision, "contrast": contrast},
        train=train_both, store=lambda model, folder: save_folder(model, config, folder), measure=measure,
    )  # fmt: skip


TOY_CLIP = _job(
    "toy_clip", 96, 4, Recipe(steps=250, batch=96, lr=2e-3, warmup=40), Recipe(steps=600, batch=128, lr=2e-3, warmup=50)
)
TOY_CLIP_LARGE = _job(
    "toy_clip_large", 128, 6, Recipe(steps=250, batch=96, lr=2e-3, warmup=40),
    Recipe(steps=600, batch=128, lr=2e-3, warmup=50),
)  # fmt: skip
