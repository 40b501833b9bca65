"""`metric=aesthetic`: the LAION aesthetic score of a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmma.evaluation.aesthetic import aesthetic_scores, load_head
from cmma.evaluation.scoring.images import embed_images, features_of
from cmma.evaluation.scoring.job import ScoreJob
from cmma.evaluation.scoring.rows import write_rows
from cmma.models import load_model
from cmma.statistics.bootstrap import bootstrap_mean


def run(job: ScoreJob) -> dict[str, Any]:
    """The mean score, with its interval. Raises DataError for images, weights or an encoder that cannot be used."""
    head = load_head(Path(job.config.weights or ""))
    assert job.encoder is not None  # the registry names one
    model = load_model(job.encoder, job.device)
    keys, image_ND = features_of(
        job.predictions, lambda images: embed_images(model, images)[0], job.config.batch_size, job.problems
    )
    score_N = aesthetic_scores(head, image_ND)
    if job.config.per_sample:
        write_rows(job.config.per_sample, (
            {"image": key, "aesthetic": float(score)} for key, score in zip(keys, score_N, strict=True)
        ))
    interval = bootstrap_mean(score_N, job.config.n_bootstrap, job.seed)
    return {"name": f"aesthetic_{job.encoder.name}", "value": interval.value, "n_images": len(keys),
            "interval": interval.as_dict()}
