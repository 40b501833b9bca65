"""Hallucination at equal recall: every method under the calibration rule of `cmma.mitigation`, tested once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cmma.baselines.config import BaselinesConfig
from cmma.baselines.ground import Mentions, NotApplicable
from cmma.baselines.measures import Measure, Metric, change
from cmma.baselines.methods.base import Method
from cmma.causal.intervening import divide
from cmma.data.samples import Sample
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.mitigation import comparison
from cmma.mitigation.calibration import Calibration
from cmma.mitigation.examination import Sheet, examination, examine
from cmma.mitigation.spoken import first_of_each_image, spoken_mentions
from cmma.mitigation.steering import UNSTEERED, Steering
from cmma.models.base import MultimodalModel

OBJECT = Metric("hallucination", "object hallucination, change in %", larger=False)
_GUARDS = {"recall": "recall, change in points", "described": "objects described right, change in points",
           "accuracy": "question accuracy, change in points"}
_NONE_ALLOWED = "none of its settings keeps recall and answers within the limits and does not raise the rate"


@dataclass(frozen=True, eq=False)
class Reduction:
    """What was found: metric → method → measure or reason; every setting tried; what was chosen by method."""

    measures: dict[Metric, dict[str, Measure | str]]
    tried: pd.DataFrame
    chosen: dict[str, dict[str, Any]]
    n_images: dict[str, int]


def reduction(
    model: MultimodalModel, methods: Sequence[Method], biased: Sequence[Sample], plain: Sequence[Sample],
    config: BaselinesConfig,
) -> Reduction:  # fmt: skip
    """Choose each method's setting on the first images of either split, test once on the next.

    Args:
        biased: where the model hallucinates. plain: where nothing may get worse either.
    """
    settings = config.mitigation
    names = (settings.split, settings.plain_split)
    choosing, testing = zip(*(
        divide(samples, settings.n_calibration, settings.n_held_out) for samples in (biased, plain)), strict=True)
    calibrating, held_out = (
        [examination(*each, settings.n_questions, seed=settings.seed) for each in zip(names, some, strict=True)]
        for some in (choosing, testing)
    )
    sheets = [examine(model, exam, UNSTEERED, 0.0, settings) for exam in calibrating]
    spoken = [
        mention for exam, sheet in zip(calibrating, sheets, strict=True)
        for mention in spoken_mentions(model, exam.samples, sheet.captions, SHAPES_VOCABULARY)
    ]  # fmt: skip
    mentions = Mentions(tuple(spoken), tuple(first_of_each_image(spoken)))
    sizes = {"calibration": sum(map(len, choosing)), "held out": len(testing[0])}
    metrics = [OBJECT, *(Metric("hallucination", name, compared=False) for name in _GUARDS.values())]
    if not mentions.wrong or mentions.label_N.all():
        reason = "the captions of the calibration images hallucinate on none of them, or on all"
        return Reduction({m: {each.name: reason for each in methods} for m in metrics}, pd.DataFrame(), {}, sizes)

    calibration = Calibration(model, calibrating, sheets, settings)
    clean = [examine(model, exam, UNSTEERED, 0.0, settings) for exam in held_out]
    found: dict[Metric, dict[str, Measure | str]] = {metric: {} for metric in metrics}
    tried: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, Any]] = {}
    for method in methods:
        steerings = method.steerings(mentions)
        if isinstance(steerings, NotApplicable):
            for metric in metrics:
                found[metric][method.name] = steerings.reason
            continue
        choices = [calibration.choose(steering) for steering in steerings]
        tried += [{"method": method.name, **row} for choice in choices for row in choice.tried]
        best = min(choices, key=lambda choice: (choice.strength == 0, choice.rate))
        if best.strength == 0:
            for metric in metrics:
                found[metric][method.name] = _NONE_ALLOWED
            continue
        chosen[method.name] = {"setting": best.steering.name, "strength": best.strength,
                               "rate": best.rate, "clean_rate": calibration.clean_rate}
        for metric, measure in zip(metrics, _tested(model, held_out, clean, best.steering, best.strength, config),
                                   strict=True):
            found[metric][method.name] = measure
    return Reduction(found, pd.DataFrame(tried), chosen, sizes)


def _tested(
    model: MultimodalModel, exams: Sequence[Any], clean: Sequence[Sheet], steering: Steering, strength: float,
    config: BaselinesConfig,
) -> list[Measure]:  # fmt: skip
    """Changes where the model hallucinates. Recall and answers count on both splits, image by image."""
    after = [examine(model, exam, steering, strength, config.mitigation) for exam in exams]
    measures = [change(_counts(clean[0], "object"), _counts(after[0], "object"), relative=True)]
    return measures + [
        change(_counts(clean[0], name), _counts(after[0], name), relative=False) for name in _GUARDS
    ]


def _counts(sheet: Sheet, metric: str) -> Any:
    named = comparison.METRICS[metric]
    return sheet.columns[named.numerator], sheet.columns[named.denominator]
