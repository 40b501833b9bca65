"""Control success: `cmma.control`'s engine with every method's units in the place of the dictionary's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from cmma.baselines.config import BaselinesConfig
from cmma.baselines.ground import Ground, NotApplicable
from cmma.baselines.measures import Measure, Metric, ratio
from cmma.baselines.methods.base import Method
from cmma.control.run import CHANGED_INPUT, FEATURES, Outcome, control
from cmma.data.samples import Sample

SUCCESS = Metric("control", "success")
PRECISION = Metric("control", "precision", compared=False)
"""Of all that changed; no winner is named, since what changes nothing is never imprecise."""


@dataclass(frozen=True, eq=False)
class Controlled:
    """What was found: metric → method → measure or reason; the settings by method; every setting tried."""

    measures: dict[Metric, dict[str, Measure | str]]
    settings: dict[str, dict[str, Any]]
    tried: pd.DataFrame
    n_images: dict[str, int]


def controlled(
    ground: Ground, methods: Sequence[Method], samples: Sequence[Sample], config: BaselinesConfig
) -> Controlled:
    """Change one factor of each caption by every method's units; settings are chosen on the first samples.

    All methods have the same trials. `changed input` is the ceiling: the caption of the scene as it should become.
    """
    found: dict[Metric, dict[str, Measure | str]] = {SUCCESS: {}, PRECISION: {}}
    settings: dict[str, dict[str, Any]] = {}
    tried: list[pd.DataFrame] = []
    sizes: dict[str, int] = {}
    ceiling: dict[Metric, Measure] = {}
    for method in methods:
        units = method.dictionary()
        if isinstance(units, NotApplicable):
            found[SUCCESS][method.name] = found[PRECISION][method.name] = units.reason
            continue
        conditions = (FEATURES,) if ceiling else (FEATURES, CHANGED_INPUT)
        outcome = control(ground.model, units, ground.layer, samples, config.control, conditions)
        if not outcome.measured:
            reason = "the model describes too few of the scenes as they are"
            found[SUCCESS][method.name] = found[PRECISION][method.name] = reason
            continue
        found[SUCCESS][method.name], found[PRECISION][method.name] = _measures(outcome, FEATURES)
        if not ceiling:
            ceiling = dict(zip((SUCCESS, PRECISION), _measures(outcome, CHANGED_INPUT), strict=True))
        settings[method.name] = {factor: asdict(setting) for factor, setting in outcome.settings.items()}
        tried.append(outcome.tuning.assign(method=method.name))
        sizes = dict(outcome.n_right)
    for metric, measure in ceiling.items():
        found[Metric("control", f"{metric.name}, changed input", compared=False)] = {CHANGED_INPUT: measure}
    return Controlled(found, settings, pd.concat(tried) if tried else pd.DataFrame(), sizes)


def _measures(outcome: Outcome, condition: str) -> tuple[Measure, Measure]:
    """Success of all trials, and successes of all factors that changed; images are the units, with all their trials."""
    counts = pd.DataFrame([
        {"key": each.trial.sample.key, "trials": 1, "success": each.change.success,
         "changed": each.change.success + each.change.unintended}
        for each in outcome.measured if each.condition == condition
    ]).groupby("key", sort=True).sum().astype(float)  # fmt: skip
    success_I, trials_I, changed_I = (counts[name].to_numpy() for name in ("success", "trials", "changed"))
    return ratio(success_I, trials_I), ratio(success_I, changed_I)
