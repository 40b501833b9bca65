"""`metric=ssim` and `lpips`: images against the images of the same name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from cmma.console import track
from cmma.errors import DataError
from cmma.evaluation.lpips import Trunk, load_lpips, lpips
from cmma.evaluation.scoring.images import image_files, open_or_note
from cmma.evaluation.scoring.job import ScoreJob
from cmma.evaluation.scoring.rows import write_rows
from cmma.evaluation.ssim import ssim
from cmma.statistics.bootstrap import bootstrap_mean


def run(job: ScoreJob) -> dict[str, Any]:
    """The mean over pairs of one name, with its interval. Raises DataError where there is not one usable pair."""
    name, compare = _comparison(job)
    made, real = (image_files(folder, job.problems) for folder in (job.predictions, job.references))
    for key in made.keys() - real.keys():
        job.problems.add("image_without_reference", key)
    values: dict[str, float] = {}
    for key in track([key for key in made if key in real], "Comparing images"):
        first, second = (open_or_note(files[key], job.problems) for files in (made, real))
        if first is None or second is None:
            continue
        try:
            values[key] = compare(first, second)
        except DataError as error:
            job.problems.add("pair_without_value", f"{key}: {error}")
    if not values:
        raise job.nothing("not one image with a usable reference of its name")
    if job.config.per_sample:
        write_rows(job.config.per_sample, ({"image": key, name: value} for key, value in values.items()))
    interval = bootstrap_mean(np.array([*values.values()]), job.config.n_bootstrap, job.seed)
    return {"name": name, "value": interval.value, "n_pairs": len(values), "interval": interval.as_dict()}


def _comparison(job: ScoreJob) -> tuple[str, Callable[[Image.Image, Image.Image], float]]:
    if job.config.metric == "ssim":
        return "ssim", ssim
    distance = load_lpips(cast(Trunk, job.variant), Path(job.config.weights or "")).to(job.device)
    return f"lpips_{job.variant}", partial(lpips, distance)
