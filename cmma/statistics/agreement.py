"""How well an estimate ranks what was measured: rank correlation, and the share of the largest that it finds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cmma.statistics.bootstrap import RESAMPLES, Interval, bootstrap_statistic, proportion

Array = NDArray[np.float64]


def rank_correlation(
    estimate_F: Array, measured_F: Array, n_resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Spearman's ρ over F things. They are the sample, and are resampled; both sides come from the same images."""

    def statistic(estimate_RF: Array, measured_RF: Array, axis: int = -1) -> Array:
        ranks = [stats.rankdata(values_RF, axis=axis) for values_RF in (estimate_RF, measured_RF)]
        a_RF, b_RF = (rank_RF - rank_RF.mean(axis=axis, keepdims=True) for rank_RF in ranks)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (a_RF * b_RF).sum(axis) / np.sqrt((a_RF**2).sum(axis) * (b_RF**2).sum(axis))

    if len(estimate_F) < 3:
        return Interval(math.nan, math.nan, math.nan, len(estimate_F), "no interval: fewer than three to rank")
    return bootstrap_statistic(statistic, estimate_F, measured_F, n_resamples=n_resamples, seed=seed)


def screen_recall(screened: Array, sampled: Array, n_rest: int, top: int) -> Interval:
    """Of all things at least as large as the screen's `top`-th, the estimated share that the screen holds.

    A screen picks some of a population; of the `n_rest` others a random sample is measured as well. The share of that
    sample that reaches the bar, times `n_rest`, estimates how many the screen missed; the interval is that of the share
    (Clopper-Pearson), exact where all others were measured.

    Args:
        screened: measured sizes of what the screen picked, at least `top`.
        sampled: measured sizes of the random sample.
    """
    bar = np.sort(screened)[::-1][top - 1]
    return recall_by_sample(int((screened >= bar).sum()), int((sampled >= bar).sum()), len(sampled), n_rest)


def recall_by_sample(found: int, missed: int, n_sampled: int, n_rest: int) -> Interval:
    """found / (found + what the rest holds), estimated from the `missed` among `n_sampled` random ones of the rest.

    The interval is that of the share of the rest (Clopper-Pearson); none is needed where all of it was measured. NaN
    where there is nothing to find.
    """

    def recall(share: float) -> float:
        whole = found + share * n_rest
        return found / whole if whole else math.nan

    if n_sampled == n_rest:
        value = recall(missed / n_rest if n_rest else 0.0)
        return Interval(value, value, value, n_sampled, "everything was measured")
    if not n_sampled:
        return Interval(math.nan, math.nan, math.nan, 0, "no interval: nothing outside the screen was measured")
    share = proportion(missed, n_sampled)
    return Interval(recall(share.value), recall(share.high), recall(share.low), n_sampled, share.kind)


def top_recall(
    estimate_IF: Array, measured_IF: Array, top: int, n_resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Share of the `top` largest mean measurements, in size, that are among the `top` largest mean estimates.

    Args:
        estimate_IF, measured_IF: of the same images, which the interval resamples; NaN where an image lacks a thing.
    """

    def statistic(image_RI: Array, axis: int = -1) -> Array:
        chosen = image_RI.astype(int)
        largest = [
            np.argsort(-np.abs(np.nan_to_num(_mean(values_IF[chosen]))), axis=-1, kind="stable")[..., :top]
            for values_IF in (estimate_IF, measured_IF)
        ]
        return (largest[0][..., :, None] == largest[1][..., None, :]).any(-1).mean(-1)

    return bootstrap_statistic(statistic, np.arange(len(estimate_IF)), n_resamples=n_resamples, seed=seed)


def with_bounds(found: Mapping[str, Interval]) -> dict[str, float]:
    """Intervals as flat numbers: name, name_low, name_high."""
    return {
        name + suffix: number
        for name, interval in found.items()
        for suffix, number in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
    }


def _mean(values_RIF: Array) -> Array:
    """Mean over images that have a value; NaN where none has."""
    present_RIF = np.isfinite(values_RIF)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(present_RIF, values_RIF, 0).sum(-2) / present_RIF.sum(-2)
