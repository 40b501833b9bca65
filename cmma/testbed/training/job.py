"""One small model of the testbed: how it is built, trained, stored and measured."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cmma.checks import one_of
from cmma.console import say
from cmma.testbed.training.bootstrap import Estimate
from cmma.testbed.training.loop import Recipe

JOBS = {
    "toy_llava": "cmma.testbed.training.llava:TOY_LLAVA",
    "toy_llava_large": "cmma.testbed.training.llava:TOY_LLAVA_LARGE",
    "toy_clip": "cmma.testbed.training.clip:TOY_CLIP",
    "toy_clip_large": "cmma.testbed.training.clip:TOY_CLIP_LARGE",
    "toy_blip": "cmma.testbed.training.blip:TOY_BLIP",
    "toy_sd": "cmma.testbed.training.sd:TOY_SD",
}
"""Name → "module:attribute" of its Job."""

EVALUATION_SEED = 1000
"""Evaluation data: splits other than `train`, and another seed than any training."""


@dataclass(frozen=True)
class Job:
    """One small model.

    Attributes:
        name: of the model and of its folder in `cmma/testbed/weights`.
        build: seed → the untrained model.
        stages: recipe of every training stage.
        train: (model, folder for checkpoints, seed, preview) → minutes per stage. Trains in place on the device that
            the model is on, and goes on from the checkpoints that it finds in the folder.
        store: (model, folder): write a checkpoint folder that the model's own library loads; complete or absent. Not
            called `save`: nnsight gives every object a `save`, which a dataclass then takes for a default.
        measure: (folder, quick) → metrics by group, from the stored weights, through that library.
        notes: what else belongs in `recipe.json`.
    """

    name: str
    build: Callable[[int], Any]
    stages: Mapping[str, Recipe]
    train: Callable[[Any, Path, int, Callable[[], None]], dict[str, float]]
    store: Callable[[Any, Path], None]
    measure: Callable[[Path, bool], dict[str, dict[str, Estimate]]]
    notes: Mapping[str, Any] = field(default_factory=dict)


def find_job(name: str) -> Job:
    """The job called `name`. Raises ConfigError naming those that there are."""
    one_of("MODEL", name, tuple(JOBS))
    module, attribute = JOBS[name].split(":")
    return getattr(import_module(module), attribute)


def train_model(job: Job, out: Path, seed: int, device: str = "cpu") -> Path:
    """Train from nothing, or from where a killed run stopped, and measure what was stored.

    Returns:
        `out/weights`: the checkpoint folder with `recipe.json` and `metrics.json`.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = job.build(seed).to(device)
    parameters = sum(weight.numel() for weight in model.parameters())

    def preview() -> None:
        job.store(model, out / "preview")
        measure(job, out / "preview", quick=True)

    minutes = job.train(model, out, seed, preview)
    weights = out / "weights"
    job.store(model, weights)
    recipe = {
        "seed": seed, "parameters": parameters,
        "stages": {name: asdict(stage) for name, stage in job.stages.items()}, **job.notes,
        "minutes": {name: round(value, 1) for name, value in minutes.items()},
        "device": _device_name(device), "torch": torch.__version__.split("+")[0],
        "command": f"make testbed MODEL={job.name}",
    }  # fmt: skip
    (weights / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    measure(job, weights)
    return weights


def measure(job: Job, folder: Path, quick: bool = False) -> dict[str, dict[str, Estimate]]:
    """Measure stored weights, write `metrics.json` beside them and print it."""
    metrics = job.measure(folder, quick)
    header = {"seed": EVALUATION_SEED, "interval": "95% percentile bootstrap over images, 10,000 resamples"}
    (folder / "metrics.json").write_text(json.dumps(header | metrics, indent=2) + "\n", encoding="utf-8")
    for group, estimates in metrics.items():
        cells = [f"{name} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for name, e in estimates.items()]
        say(f"{group}: " + ", ".join(cells))
    return metrics


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU thread(s), {platform.machine()}"
