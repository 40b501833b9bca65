"""`metric=controllability`: what edits changed in images or captions of the shapes world (docs/control.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cmma.console import track
from cmma.control.rates import RATES, counts_of, mean_ratio
from cmma.control.scoring import Facts, facts_of_caption, facts_of_image, judge, shows
from cmma.control.trials import FACTORS, VALUES, Trial
from cmma.data.samples import Sample
from cmma.evaluation.scoring.images import open_or_note
from cmma.evaluation.scoring.job import Problems, ScoreJob
from cmma.evaluation.scoring.rows import MAX_CHARACTERS, Row, read_rows, write_rows
from cmma.evaluation.scoring.scenes import read_scenes
from cmma.testbed.parser import parse_images

_CAPTIONS, _IMAGES = ("before", "after"), ("before_image", "after_image")


@dataclass(frozen=True)
class _Edit:
    """One trial: where it stands, what was asked, and what the result shows before and after."""

    place: str
    trial: Trial
    before: Facts
    after: Facts


def run(job: ScoreJob) -> dict[str, Any]:
    """Success, precision and preservation per dimension and over all: the mean of the dimensions.

    Raises:
        DataError: files that cannot be read, or not one usable trial.
    """
    rows = list(read_rows(job.predictions, job.problems))
    scenes = read_scenes(job.references, {row.image for row in rows}, job.problems)
    edits = []
    for row in track(rows, "Reading trials"):
        edit = _edit(row, scenes, job.predictions.parent, job.problems)
        if edit is not None and not shows(edit.before, edit.trial):
            job.problems.add("another_scene_before_the_edit", row.place)
        elif edit is not None:
            edits.append(edit)
    if not edits:
        raise job.nothing("not one trial whose result shows its scene before the edit")
    counts = [counts_of(judge(edit.before, edit.after, edit.trial)) for edit in edits]
    table = pd.DataFrame(counts).assign(
        key=[edit.trial.sample.key for edit in edits], dimension=[edit.trial.dimension for edit in edits]
    )
    if job.config.per_sample:
        write_rows(job.config.per_sample, (
            {"trial": edit.place, "image": edit.trial.sample.key, "factor": edit.trial.factor,
             "target": edit.trial.target, **count}
            for edit, count in zip(edits, counts, strict=True)
        ))
    parts = {str(name): part for name, part in table.groupby("dimension", sort=False)}
    overall = _rates(job, list(parts.values()))
    return {
        **{name: interval["value"] for name, interval in overall.items()},
        "n_trials": len(edits), "n_images": table["key"].nunique(), "intervals": overall,
        "dimensions": {name: {"n_trials": len(part), **_rates(job, [part])} for name, part in parts.items()},
    }  # fmt: skip


def _rates(job: ScoreJob, parts: Sequence[pd.DataFrame]) -> dict[str, Any]:
    return {
        name: mean_ratio(parts, *columns, job.config.n_bootstrap, job.seed).as_dict()
        for name, columns in RATES.items()
    }


def _edit(row: Row, scenes: Mapping[str, Sample], folder: Path, problems: Problems) -> _Edit | None:
    """The trial of a row; None, and counted, where it cannot be used."""
    if row.image not in scenes:
        problems.add("unknown_image", row.image)
        return None
    trial = _trial(row.content, scenes[row.image])
    if trial is None:
        problems.add("trial_that_cannot_be", f"{row.place}: {row.content.get('factor')} → {row.content.get('target')}")
        return None
    facts = _facts(row, folder, problems)
    return None if facts is None else _Edit(row.place, trial, *facts)


def _facts(row: Row, folder: Path, problems: Problems) -> tuple[Facts, Facts] | None:
    """What two images show or two captions say; None, and counted, where a result cannot be read."""
    if all(isinstance(row.content.get(name), str) for name in _IMAGES):
        opened = [open_or_note(folder / row.content[name], problems) for name in _IMAGES]
        images = [image for image in opened if image is not None]
        if len(images) < 2:
            return None
        before, after = map(facts_of_image, parse_images(images))
        return before, after
    texts = [text for name in _CAPTIONS if isinstance(text := row.content.get(name), str)]
    if len(texts) < 2 or max(map(len, texts)) > MAX_CHARACTERS:
        problems.add("trial_without_results", row.place)
        return None
    before, after = map(facts_of_caption, texts)
    return before, after


def _trial(content: Mapping[str, Any], scene: Sample) -> Trial | None:
    """What was asked for; None where the scene does not allow it."""
    factor, target, index = content.get("factor"), content.get("target"), content.get("object")
    if not isinstance(factor, str) or not isinstance(target, str):
        return None
    if factor == "places":
        possible = len(scene.objects) == 2 and [0, target, 1] in scene.meta["relations"]
        return Trial(scene, factor, (0, 1), target) if possible else None
    if factor not in FACTORS or type(index) is not int or not 0 <= index < len(scene.objects):
        return None
    possible = target in VALUES[factor] and target != scene.objects[index][factor]
    return Trial(scene, factor, (index,), target) if possible else None
