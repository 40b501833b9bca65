"""`metric=fid`, `kid` and `cmmd`: how far two folders of images lie apart, as sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from cmma.evaluation.frechet import Moments, distance_name, frechet_distance
from cmma.evaluation.inception import inception_features, load_inception
from cmma.evaluation.kernel_distance import cmmd, kernel_distance
from cmma.evaluation.scoring.images import embed_images, features_of
from cmma.evaluation.scoring.job import ScoreJob
from cmma.models import load_model
from cmma.models.spec import ModelSpec

CMMD_ARCHITECTURE, CMMD_SIZE = "ViT-L-14-336-quickgelu", 336
_PREFIX = {"fid": "fd", "kid": "kd", "cmmd": "mmd"}


def run(job: ScoreJob) -> dict[str, Any]:
    """The distance under its own name: FID and KID only of Inception features, CMMD only of its own encoder.

    Raises:
        DataError: folders, images or weights that cannot be used.
    """
    metric, weights = job.config.metric, job.config.weights
    if weights:
        network = load_inception(Path(weights)).to(job.device)
        name = distance_name("inception", job.variant, "fd" if metric == "fid" else "kid")

        def read(images: list[Image.Image]) -> Any:
            return inception_features(network, images, job.variant)
    else:
        assert job.encoder is not None  # the registry names one
        model, square = load_model(job.encoder, job.device), 0
        name = distance_name(job.encoder.name, prefix=_PREFIX[metric])
        if metric == "cmmd" and is_cmmd_encoder(job.encoder):
            name, square = "cmmd", CMMD_SIZE

        def read(images: list[Image.Image]) -> Any:
            return embed_images(model, images, square=square)[0]

    made_ND, real_ND = (
        features_of(folder, read, job.config.batch_size, job.problems)[1]
        for folder in (job.predictions, job.references)
    )
    counts = {"n_predictions": len(made_ND), "n_references": len(real_ND), "d": made_ND.shape[1]}
    if metric == "cmmd":
        return {"name": name, "value": cmmd(made_ND, real_ND), **counts}
    if metric == "kid":
        found = asdict(kernel_distance(made_ND, real_ND, name, seed=job.seed))
        return {**found, **counts}
    d = made_ND.shape[1]
    distance = frechet_distance(Moments(d).update(made_ND), Moments(d).update(real_ND), name)
    return {"name": name, "value": distance.value, "rank_deficient": distance.rank_deficient, **counts}


def is_cmmd_encoder(spec: ModelSpec) -> bool:
    """Whether an encoder is the one that CMMD is defined by: OpenAI's ViT-L/14 at 336 pixels, trained."""
    return spec.architecture == CMMD_ARCHITECTURE and spec.weights != "random"
