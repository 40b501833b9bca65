"""What toy_sd can do, measured through plain diffusers on the stored weights with the scene parser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cmma.testbed import language
from cmma.testbed.measure_parser import compare
from cmma.testbed.parser import ParsedScene, parse_images
from cmma.testbed.prompted import COUNTED, prompt_counts
from cmma.testbed.render import render
from cmma.testbed.training.bootstrap import Estimate, image_ratio
from cmma.testbed.training.job import EVALUATION_SEED
from cmma.testbed.training.toy_sd import load_folder
from cmma.testbed.world import sample_scenes

STEPS, GUIDANCE = 25, 4.0
_BATCH = 50


def generate_images(
    pipeline: Any, prompts: Sequence[str], seed: int = EVALUATION_SEED
) -> list[Image.Image]:
    """One image per prompt by the pipeline's own call; image i starts from the noise of seed + i."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        texts = list(prompts[start : start + _BATCH])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(texts))]
        images += pipeline(texts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators).images
    return images


def prompt_metrics(prompts: Sequence[str], parsed: Sequence[ParsedScene]) -> dict[str, Estimate]:
    """How far parsed images show what their prompts say (`prompt_counts`); what no prompt says is left out."""
    rows = [prompt_counts(prompt, scene) for prompt, scene in zip(prompts, parsed, strict=True)]
    pairs = {name: np.array([row[name] for row in rows]) for name in COUNTED}
    return {name: image_ratio(*pair.T) for name, pair in pairs.items() if pair[:, 1].any()}


def _short(scene: language.Scene) -> str:
    return f"a {scene[0].name}."


def _phrases(scene: language.Scene) -> str:
    return ", ".join(language.noun_phrase(thing) for thing in scene) + "."


PROMPTS: dict[str, Callable[[language.Scene], str]] = {
    "caption": language.caption, "noun phrases": _phrases, "one object": _short
}
"""Kind of evaluation prompt → text of a scene: the whole caption, only its noun phrases, or "a red circle."."""


@torch.inference_mode()
def reconstruction(pipeline: Any, n_images: int) -> dict[str, Estimate]:
    """Parser accuracy on held-out scenes after encoding and decoding by the autoencoder."""
    scenes = sample_scenes(n_images, "balanced", EVALUATION_SEED)
    images, _ = render(scenes)
    decoded = []
    for start in range(0, n_images, _BATCH):
        pixels = pipeline.image_processor.preprocess([Image.fromarray(i) for i in images[start : start + _BATCH]])
        latents = pipeline.vae.encode(pixels).latent_dist.mean
        decoded += pipeline.image_processor.postprocess(pipeline.vae.decode(latents).sample)
    return compare(parse_images(decoded), [scenes.scene(i) for i in range(n_images)])


def measure(folder: Path, quick: bool) -> dict[str, dict[str, Estimate]]:
    """All metrics of a stored toy_sd: 500 images per kind of prompt, 40 when `quick` (captions only).

    `shuffled` scores the images of the captions against the captions of other scenes: what chance gives.
    """
    pipeline = load_folder(folder)
    n_images = 40 if quick else 500
    scenes = sample_scenes(n_images, "balanced", EVALUATION_SEED)
    metrics = {"reconstruction": reconstruction(pipeline, n_images)}
    for kind in ("caption",) if quick else PROMPTS:
        prompts = [PROMPTS[kind](scenes.scene(i)) for i in range(n_images)]
        parsed = parse_images(generate_images(pipeline, prompts))
        metrics[kind] = prompt_metrics(prompts, parsed)
        if kind == "caption":
            metrics["shuffled"] = prompt_metrics([*prompts[1:], prompts[0]], parsed)
    return metrics
