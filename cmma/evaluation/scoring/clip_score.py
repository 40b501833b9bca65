"""`metric=clip_score`: captions and the images that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmma.console import progress
from cmma.errors import CmmaError, DataError
from cmma.evaluation.chair import sum_by_image
from cmma.evaluation.clip_score import PREFIX, clip_score, hundred_cosines, ref_clip_score
from cmma.evaluation.scoring.bleu import reference_captions
from cmma.evaluation.scoring.images import embed_images, image_files, open_or_note
from cmma.evaluation.scoring.job import Problems, ScoreJob
from cmma.evaluation.scoring.rows import Text, read_texts, write_rows
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.statistics.bootstrap import Interval, bootstrap_ratio

PUBLISHED = "clip_vit_b32"
"""The encoder of the published numbers; those of another one carry its name."""


def run(job: ScoreJob) -> dict[str, Any]:
    """CLIPScore, torchmetrics' CLIP score under its own name, and RefCLIPScore where reference captions are given.

    Either input may be the folder of images: captions of images, or images made from captions.

    Raises:
        DataError: inputs that cannot be read, or not one caption with its image.
    """
    config, problems = job.config, job.problems
    folder, table = job.references, job.predictions
    if job.predictions.is_dir():
        folder, table = table, folder
    texts = read_texts(table, ("caption", "text"), problems)
    files = image_files(folder, problems)
    references = reference_captions(Path(config.captions).expanduser(), set(files), problems) if config.captions else {}
    assert job.encoder is not None  # the registry names one
    if texts and not any(text.image in files for text in texts):
        raise DataError(f"{table}: no caption names an image of {folder}; the first is of {texts[0].image!r}")
    model = load_model(job.encoder, job.device)
    if model.kind != "dual_encoder":
        raise CmmaError(f"{job.encoder.name} does not embed images and texts; set metric.encoder to a dual encoder")
    scored: list[Text] = []
    parts: dict[str, list[np.ndarray]] = {}
    with progress("Scoring captions", total=len(texts)) as bar:
        for start in range(0, len(texts), config.batch_size):
            some = texts[start : start + config.batch_size]
            kept = [(text, image) for text in some if (image := _image(text, files, problems)) is not None]
            if kept:
                scored += [text for text, _ in kept]
                for name, value_N in _scores(model, kept, references).items():
                    parts.setdefault(name, []).append(value_N)
            bar.advance(len(some))
    if not scored:
        raise job.nothing("not one caption with its image")
    for text in scored:
        if config.captions and not references.get(text.image):
            problems.add("image_without_reference", text.image)
    suffix = "" if job.encoder.name == PUBLISHED and job.encoder.weights != "random" else f"_{job.encoder.name}"
    values = {f"{name}{suffix}": np.concatenate(values) for name, values in parts.items()}
    if config.per_sample:
        write_rows(config.per_sample, (
            {"image": text.image, "caption": text.text}
            | {name: None if np.isnan(value_N[row]) else float(value_N[row]) for name, value_N in values.items()}
            for row, text in enumerate(scored)
        ))
    images = [text.image for text in scored]
    intervals = {name: _mean(job, value_N, images) for name, value_N in values.items()}
    return {
        **{name: max(interval.value, 0.0) for name, interval in intervals.items()},
        "n_captions": len(scored), "n_images": len(set(images)), "encoder": job.encoder.name, "prefix": PREFIX,
        "intervals": {name: interval.as_dict() for name, interval in intervals.items()},
    }  # fmt: skip


def _image(text: Text, files: dict[str, Path], problems: Problems) -> Image.Image | None:
    if text.image not in files:
        problems.add("unknown_image", text.image)
        return None
    return open_or_note(files[text.image], problems)


def _scores(
    model: MultimodalModel, kept: list[tuple[Text, Image.Image]], references: dict[str, list[str]]
) -> dict[str, np.ndarray]:
    """Name → value of each caption; RefCLIPScore is NaN where an image has no reference."""
    images = [image for _, image in kept]
    image_ND, plain_ND = embed_images(model, images, [text.text for text, _ in kept])
    text_ND = embed_images(model, images, [PREFIX + text.text for text, _ in kept])[1]
    found = {
        "clip_score": clip_score(image_ND, text_ND), "torchmetrics_clip_score": hundred_cosines(image_ND, plain_ND),
    }  # fmt: skip
    if references:
        value_N = found["ref_clip_score"] = np.full(len(kept), np.nan)
        blank = Image.new("RGB", (8, 8))
        for row, (text, _) in enumerate(kept):
            own = [PREFIX + caption for caption in references.get(text.image, [])]
            if own:
                reference_RD = embed_images(model, [blank] * len(own), own)[1]
                value_N[row : row + 1] = ref_clip_score(image_ND[[row]], text_ND[[row]], reference_RD[None])
    return found


def _mean(job: ScoreJob, value_N: np.ndarray, images: list[str]) -> Interval:
    """Mean over the captions that have a value; the interval resamples images."""
    has_N = ~np.isnan(value_N)
    sum_I, n_I = sum_by_image(np.stack([np.where(has_N, value_N, 0), has_N], axis=1), images).T
    return bootstrap_ratio(sum_I[n_I > 0], n_I[n_I > 0], job.config.n_bootstrap, job.seed)
