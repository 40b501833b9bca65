"""`metric=bleu`: captions against reference captions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmma.evaluation.bleu import bleu
from cmma.evaluation.scoring.annotations import coco_captions
from cmma.evaluation.scoring.job import Problems, ScoreJob
from cmma.evaluation.scoring.rows import read_rows, read_texts


def run(job: ScoreJob) -> dict[str, Any]:
    """BLEU, named by its variant. Raises DataError where not one caption has a reference."""
    texts = read_texts(job.predictions, ("caption", "text"), job.problems)
    references = reference_captions(job.references, {text.image for text in texts}, job.problems)
    scored = [text for text in texts if references.get(text.image)]
    for text in texts:
        if not references.get(text.image):
            job.problems.add("unknown_image", text.image)
    if not scored:
        raise job.nothing("not one caption of an image that the references know")
    found = bleu([text.text for text in scored], [references[text.image] for text in scored], job.variant)
    return {"name": f"bleu_{job.variant}", **asdict(found)}


def reference_captions(path: Path, wanted: set[str], problems: Problems) -> dict[str, list[str]]:
    """Image → reference captions: of a COCO annotation folder, or rows with "caption" or a list "captions"."""
    if path.is_dir():
        return coco_captions(path, wanted)
    found: dict[str, list[str]] = {}
    for place, image, content in read_rows(path, problems):
        captions = content.get("captions", [content.get("caption", content.get("text"))])
        usable = [text for text in captions if isinstance(text, str) and text.strip()] if isinstance(
            captions, list) else []
        if not usable:
            problems.add("reference_without_text", place)
        found.setdefault(image, []).extend(usable)
    return found
