"""`metric=scene`: captions of the shapes world against its scenes: objects, attributes, relations."""

from __future__ import annotations

from typing import Any

from cmma.evaluation.scene_captions import scene_hallucination, score_scene_caption
from cmma.evaluation.scoring.job import ScoreJob
from cmma.evaluation.scoring.rows import read_texts, write_rows
from cmma.evaluation.scoring.scenes import read_scenes

_RATES = ("objects", "attributes", "relations", "described")


def run(job: ScoreJob) -> dict[str, Any]:
    """The rates of `cmma.evaluation.scene_captions` with their intervals and denominators.

    Raises:
        DataError: files that cannot be read, or not one caption of a known scene.
    """
    texts = read_texts(job.predictions, ("caption", "text"), job.problems)
    scenes = read_scenes(job.references, {text.image for text in texts}, job.problems)
    scored = [text for text in texts if text.image in scenes]
    for image in dict.fromkeys(text.image for text in texts if text.image not in scenes):
        job.problems.add("unknown_image", image)
    if not scored:
        raise job.nothing("not one caption of an image whose scene the references hold")
    samples = [scenes[text.image] for text in scored]
    found = scene_hallucination([text.text for text in scored], samples, job.config.n_bootstrap, job.seed)
    if job.config.per_sample:
        write_rows(job.config.per_sample, (
            {"image": text.image, "caption": text.text, **vars(score_scene_caption(text.text, sample))}
            for text, sample in zip(scored, samples, strict=True)
        ))
    return {
        **{name: getattr(found, name).value for name in _RATES},
        "n_captions": len(scored), "n_images": len({text.image for text in scored}), "n_mentions": found.n_mentions,
        "n_attributed": found.n_attributed, "n_relations": found.n_relations,
        "intervals": {name: getattr(found, name).as_dict() for name in _RATES},
    }  # fmt: skip
