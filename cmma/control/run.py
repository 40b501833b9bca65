"""Controllable generation from its configuration: choose features and settings, then measure on other samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import pandas as pd

from cmma.causal.controls import matched_features, random_direction
from cmma.causal.intervening import divide
from cmma.console import progress
from cmma.control.config import ControlConfig
from cmma.control.edits import Contrasts, FeatureChange, Setting
from cmma.control.makers import Made, Maker, chunks, make_maker
from cmma.control.scoring import Change, judge, shows
from cmma.control.trials import FACTORS, Trial, draw_trials
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder

FEATURES, RANDOM_FEATURES, RANDOM_DIRECTION = "features", "random features", "random direction"
CHANGED_INPUT = "changed input"
CONDITIONS = (FEATURES, RANDOM_FEATURES, RANDOM_DIRECTION, CHANGED_INPUT)


@dataclass(frozen=True)
class Measured:
    """One trial under one condition. draw: of the condition's random draws."""

    trial: Trial
    condition: str
    draw: int
    before: Made
    after: Made
    change: Change


@dataclass(frozen=True)
class Outcome:
    """Everything that `control` measured.

    Attributes:
        measured: all trials under all conditions.
        tuning: one row per factor and setting tried on the selection samples.
        settings: the one that each factor was measured with.
        n_samples, n_right: samples on either side, and how many of them the model makes as their scene says.
    """

    measured: list[Measured]
    tuning: pd.DataFrame
    settings: Mapping[str, Setting]
    n_samples: Mapping[str, int]
    n_right: Mapping[str, int]


def control(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], config: ControlConfig,
    conditions: Sequence[str] = CONDITIONS,
) -> Outcome:  # fmt: skip
    """Change one factor of each scene by dictionary features, on samples that nothing was chosen on.

    Only samples whose result shows their scene before any change are used: success could not be told otherwise.

    Args:
        conditions: of `CONDITIONS`, those that are measured.

    Raises:
        ConfigError: the model makes neither images nor captions. DataError: the samples are no scenes.
    """
    if not all(sample.objects for sample in samples):
        raise DataError("control reads scenes with the parser of the shapes world; take dataset=shapes")
    samples = [sample for sample in samples if all(thing["visible"] for thing in sample.objects)]
    choosing, measuring = divide(samples, config.n_selection, config.max_samples)
    maker = make_maker(model, sae, layer, config)
    before = _before(maker, [*choosing, *measuring])
    right = [
        [sample for sample in some if shows(before[sample.key].facts, Trial(sample, "shape", (0,), ""))]
        for some in (choosing, measuring)
    ]  # fmt: skip
    kinds = maker.tokens if config.tokens == "auto" else (config.tokens,)
    contrasts = {kind: maker.contrasts(right[0], [before[sample.key] for sample in right[0]], kind) for kind in kinds}

    measured: list[Measured] = []
    tried: list[dict[str, Any]] = []
    settings: dict[str, Setting] = {}
    for factor in (factor for factor, dimension in FACTORS.items() if dimension in config.dimensions):
        tuning, trials = (_trials(some, before, factor, config.seed) for some in right)
        if not tuning or not trials:
            continue
        rows = _tune(maker, contrasts, before, tuning[: config.n_tuning], _grid(maker, kinds, config))
        tried += [{"factor": factor, **row} for row in rows]
        best = max(rows, key=lambda row: row["score"])
        settings[factor] = Setting(*(best[name] for name in ("tokens", "n_features", "strength", "start")))
        measured += _measure(maker, contrasts[settings[factor].tokens], before, trials, settings[factor], conditions)
    return Outcome(
        measured, pd.DataFrame(tried), settings,
        {"selection": len(choosing), "measurement": len(measuring)},
        {"selection": len(right[0]), "measurement": len(right[1])},
    )  # fmt: skip


def _before(maker: Maker, samples: Sequence[Sample]) -> dict[str, Made]:
    return {sample.key: made for sample, made in zip(samples, maker.make(samples), strict=True)}


def _trials(samples: Sequence[Sample], before: Mapping[str, Made], factor: str, seed: int) -> list[Trial]:
    return [trial for trial in draw_trials(samples, factor, seed) if shows(before[trial.sample.key].facts, trial)]


def _grid(maker: Maker, kinds: Sequence[str], config: ControlConfig) -> list[Setting]:
    starts = config.starts if maker.in_steps else [0.0]
    return [Setting(*each) for each in product(kinds, config.n_features, config.strengths, starts)]


def _tune(
    maker: Maker, contrasts: Mapping[str, Contrasts], before: Mapping[str, Made], trials: Sequence[Trial],
    grid: Sequence[Setting],
) -> list[dict[str, Any]]:  # fmt: skip
    """Every setting on the selection trials; score: success rate × precision."""
    rows = []
    with progress(f"Choosing a setting for {trials[0].factor}", total=len(grid)) as bar:
        for setting in grid:
            contrast = contrasts[setting.tokens]
            features = [contrast.features(trial, setting.n_features) for trial in trials]
            changes = [
                judge(before[trial.sample.key].facts, made.facts, trial)
                for trial, made in zip(trials, _edited(maker, contrast, before, trials, features, setting), strict=True)
            ]
            successes = sum(change.success for change in changes)
            all_changes = successes + sum(change.unintended for change in changes)
            success, precision = successes / len(trials), successes / max(1, all_changes)
            rows.append(asdict(setting) | {
                "n": len(trials), "success": success, "precision": precision, "score": success * precision,
            })  # fmt: skip
            bar.advance(1)
    return rows


def _measure(
    maker: Maker, contrast: Contrasts, before: Mapping[str, Made], trials: Sequence[Trial], setting: Setting,
    conditions: Sequence[str],
) -> list[Measured]:  # fmt: skip
    """The trials under every condition that is asked for."""
    config = maker.config
    features = [contrast.features(trial, setting.n_features) for trial in trials]
    runs: list[tuple[str, int, list[Made]]] = []
    if FEATURES in conditions:
        runs.append((FEATURES, 0, _edited(maker, contrast, before, trials, features, setting)))
    others = []
    if RANDOM_FEATURES in conditions:
        others = [matched_features(contrast.density_K, list(some), config.n_controls, config.seed) for some in features]
    for draw in range(config.n_controls):
        if RANDOM_FEATURES in conditions:
            matched = [tuple(draws[draw]) for draws in others]
            runs.append((RANDOM_FEATURES, draw, _edited(maker, contrast, before, trials, matched, setting)))
        if RANDOM_DIRECTION in conditions:
            seed = config.seed * config.n_controls + draw
            runs.append((RANDOM_DIRECTION, draw, _edited(maker, contrast, before, trials, features, setting, seed)))
    if CHANGED_INPUT in conditions:
        runs.append((CHANGED_INPUT, 0, maker.changed(trials)))
    return [
        Measured(trial, condition, draw, before[trial.sample.key], after,
                 judge(before[trial.sample.key].facts, after.facts, trial))
        for condition, draw, made in runs for trial, after in zip(trials, made, strict=True)
    ]  # fmt: skip


def _edited(
    maker: Maker, contrast: Contrasts, before: Mapping[str, Made], trials: Sequence[Trial],
    features: Sequence[tuple[int, ...]], setting: Setting, random_seed: int | None = None,
) -> list[Made]:  # fmt: skip
    """What is made of each trial with its features changed; with a seed, along a random direction of equal norm."""
    made: list[Made] = []
    waits = setting.first_pass(maker.n_passes(setting.tokens)) if setting.tokens in maker.timed else 0
    for rows in chunks(len(trials), maker.config.batch_size):
        samples = [trial.sample for trial in trials[rows]]
        slots = maker.slots(samples, [before[sample.key] for sample in samples], setting.tokens)
        change = FeatureChange(maker.sae, trials[rows], features[rows], contrast, slots, setting.strength, waits)
        edit = change.edit() if random_seed is None else random_direction(change.edit(), random_seed)
        made += maker.make(samples, edit, setting)
    return made
