"""Images that a diffusion model makes from captions, and whether they show what the captions say."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cmma.data.samples import Sample
from cmma.statistics.bootstrap import Interval, bootstrap_ratio
from cmma.testbed.parser import parse_images
from cmma.testbed.prompted import COUNTED, prompt_counts


def make_images(model: Any, samples: Sequence[Sample], steps: int, guidance: float) -> list[Image.Image]:
    """One image per sample's caption, each from a noise that belongs to the sample's key."""
    seeds = [zlib.crc32(sample.key.encode()) for sample in samples]
    return model.generate_images([sample.caption for sample in samples], seeds, steps, guidance)


def prompt_accuracy(
    prompts: Sequence[str], images: Sequence[Image.Image], n_resamples: int = 10_000, seed: int = 0
) -> dict[str, Interval]:
    """Share of each kind of claim (`cmma.testbed.prompted.prompt_counts`) that images of the shapes world show.

    Kinds that no prompt claims are left out. Intervals resample images.
    """
    counts = [prompt_counts(prompt, scene) for prompt, scene in zip(prompts, parse_images(list(images)), strict=True)]
    columns = {name: np.array([row[name] for row in counts]).T for name in COUNTED}
    return {
        name: bootstrap_ratio(right_N, asked_N, n_resamples=n_resamples, seed=seed)
        for name, (right_N, asked_N) in columns.items()
        if asked_N.any()
    }
