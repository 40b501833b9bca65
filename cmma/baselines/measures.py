"""A number of one method with what its interval needs: a statistic of how often each image counts.

Every statistic is a function of weights [resamples, images], so that values, intervals and paired differences between
methods come from one resampling of the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmma.statistics.bootstrap import Interval, bootstrap_statistic
from cmma.statistics.correction import holm
from cmma.statistics.permutation import sign_flip_p

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Weights [R, I] → values [R]; NaN where undefined."""


@dataclass(frozen=True)
class Metric:
    """A column of the table. larger: whether more is better; compared: whether a winner is named."""

    comparison: str
    name: str
    larger: bool = True
    compared: bool = True


@dataclass(frozen=True, eq=False)
class Measure:
    """One method's number: the statistic over `n` images; by_image: its own value for each, where there is one."""

    statistic: Statistic
    n: int
    by_image_I: Array | None = None

    def interval(self, n_resamples: int, seed: int) -> Interval:
        """The value with its BCa interval over images."""
        return _interval(self.statistic, self.n, n_resamples, seed)


def ratio(numerator_I: Array, denominator_I: Array) -> Measure:
    """Σ numerator / Σ denominator over images."""
    with np.errstate(divide="ignore", invalid="ignore"):
        own_I = numerator_I / denominator_I
    return Measure(lambda weight_RI: _ratio(weight_RI, numerator_I, denominator_I), len(numerator_I), own_I)


def change(before: tuple[Array, Array], after: tuple[Array, Array], relative: bool) -> Measure:
    """Change of a ratio, in percent of the value before, or in points."""

    def statistic(weight_RI: Array) -> Array:
        was_R, now_R = _ratio(weight_RI, *before), _ratio(weight_RI, *after)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 100 * (now_R / was_R - 1) if relative else 100 * (now_R - was_R)

    with np.errstate(divide="ignore", invalid="ignore"):
        own_I = after[0] / after[1] - before[0] / before[1]
    return Measure(statistic, len(before[0]), own_I)


def mean_auroc(scores_IC: Array, truth_IC: NDArray[np.bool_]) -> Measure:
    """Area under the ROC curve, mean over concepts; ties count half. A concept without both kinds does not count."""
    n = len(scores_IC)
    above_CII = (scores_IC.T[:, :, None] > scores_IC.T[:, None]) + 0.5 * (
        scores_IC.T[:, :, None] == scores_IC.T[:, None])

    def statistic(weight_RI: Array) -> Array:
        areas = []
        for above_II, truth_I in zip(above_CII, truth_IC.T, strict=True):
            true_RI, false_RI = weight_RI * truth_I, weight_RI * ~truth_I
            with np.errstate(divide="ignore", invalid="ignore"):
                areas.append(((true_RI @ above_II) * false_RI).sum(1) / (true_RI.sum(1) * false_RI.sum(1)))
        return _mean_of_defined(areas)

    return Measure(statistic, n)


def mean_ratio(numerator_IC: Array, denominator_IC: Array) -> Measure:
    """Σ numerator / Σ denominator over images, mean over concepts."""

    def statistic(weight_RI: Array) -> Array:
        pairs = zip(numerator_IC.T, denominator_IC.T, strict=True)
        return _mean_of_defined([_ratio(weight_RI, *pair) for pair in pairs])

    return Measure(statistic, len(numerator_IC))


def measure_table(
    found: Mapping[Metric, Mapping[str, Measure | str]], ours: str, control: str, n_resamples: int, seed: int
) -> pd.DataFrame:
    """The long form: one row per method and metric.

    Args:
        found: metric → method → its measure, or in words why there is none.
        ours: the method that the others are compared with. control: the one that knows nothing.

    Returns:
        `method, comparison, metric, value, low, high, kind, n`; `control`, the control's value; `p` of a paired
        sign-flip test against the control over images, Holm-corrected over methods, where images have values of their
        own; `difference, difference_low, difference_high` to `ours`, resampled together; `verdict` ("beats …", "below
        …", "not apart from …", by that interval); `winner` (its interval lies apart from that of every other method);
        `reason`, why there is no value.
    """
    rows: list[dict[str, Any]] = []
    for metric, methods in found.items():
        of_metric = [_row(metric, method, measure, methods, ours, control, n_resamples, seed)
                     for method, measure in methods.items()]
        for row, p in zip(of_metric, holm([row["p"] for row in of_metric]), strict=True):
            row["p"] = p
        if metric.compared:
            _name_winner(of_metric, metric.larger)
        rows += of_metric
    return pd.DataFrame(rows)


def _row(
    metric: Metric, method: str, measure: Measure | str, methods: Mapping[str, Measure | str], ours: str, control: str,
    n_resamples: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    row: dict[str, Any] = {
        "method": method, "comparison": metric.comparison, "metric": metric.name, "larger_is_better": metric.larger,
        "value": np.nan, "low": np.nan, "high": np.nan, "kind": "", "n": 0, "control": np.nan, "p": np.nan,
        "difference": np.nan, "difference_low": np.nan, "difference_high": np.nan, "verdict": "", "winner": False,
        "reason": "",
    }  # fmt: skip
    if isinstance(measure, str):
        return row | {"reason": measure}
    interval = measure.interval(n_resamples, seed)
    row |= {"value": interval.value, "low": interval.low, "high": interval.high, "kind": interval.kind, "n": interval.n}
    floor, own = methods.get(control), methods.get(ours)
    if isinstance(floor, Measure):
        row["control"] = floor.interval(0, seed).value
        if method != control:
            row["p"] = _p(measure, floor, seed)
    if isinstance(own, Measure) and method != ours:
        apart = _interval(lambda weight_RI: measure.statistic(weight_RI) - own.statistic(weight_RI), measure.n,
                          n_resamples, seed)
        row |= {"difference": apart.value, "difference_low": apart.low, "difference_high": apart.high}
        if metric.compared and np.isfinite(apart.value):
            row["verdict"] = f"{_verdict(apart, metric.larger)} {ours}"
    return row


def _p(measure: Measure, floor: Measure, seed: int) -> float:
    if measure.by_image_I is None or floor.by_image_I is None:
        return np.nan
    difference_I = measure.by_image_I - floor.by_image_I
    difference_I = difference_I[np.isfinite(difference_I)]
    return float(sign_flip_p(difference_I, 10_000, seed)) if len(difference_I) > 1 else np.nan


def _verdict(difference: Interval, larger: bool) -> str:
    low, high = (difference.low, difference.high) if larger else (-difference.high, -difference.low)
    return "beats" if low > 0 else "below" if high < 0 else "not apart from"


def _name_winner(rows: Sequence[dict[str, Any]], larger: bool) -> None:
    """Mark the best row if its interval lies apart from all others'. NaN bounds lie apart from nothing."""
    sign = 1 if larger else -1
    there = [row for row in rows if np.isfinite(row["value"])]
    if len(there) < 2:
        return
    best = max(there, key=lambda row: sign * row["value"])
    worst_bound = min(sign * best["low"], sign * best["high"])
    rest = [max(sign * row["low"], sign * row["high"]) if np.isfinite(row["low"]) else sign * row["value"]
            for row in there if row is not best]
    best["winner"] = bool(worst_bound > max(rest))


def _ratio(weight_RI: Array, numerator_I: Array, denominator_I: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weight_RI @ numerator_I) / (weight_RI @ denominator_I))


def _mean_of_defined(values: Sequence[Array]) -> Array:
    value_CR = np.stack(values)
    defined_CR = np.isfinite(value_CR)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(defined_CR, value_CR, 0).sum(0) / defined_CR.sum(0))


def _interval(statistic: Statistic, n: int, n_resamples: int, seed: int) -> Interval:
    """Of a statistic of weights; without resamples the value alone."""
    if n_resamples == 0:
        return Interval(float(statistic(np.ones((1, n)))[0]), np.nan, np.nan, n, "no interval: not asked for")

    def of_images(image_RI: Array, axis: int = -1) -> Array:
        flat_RI = image_RI.astype(int).reshape(-1, image_RI.shape[-1])
        weight_RI = np.zeros((len(flat_RI), n))
        np.add.at(weight_RI, (np.arange(len(flat_RI))[:, None], flat_RI), 1)
        return statistic(weight_RI).reshape(image_RI.shape[:-1])

    return bootstrap_statistic(of_images, np.arange(n), n_resamples=n_resamples, seed=seed)
