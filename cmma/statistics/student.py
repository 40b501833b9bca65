"""Interval of a mean over few units, where a bootstrap has too few distinct resamples to be honest."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from cmma.statistics.bootstrap import Interval


def student_mean(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of `values` [n], one per independent unit (a seed).

    Three seeds have 10 distinct bootstrap resamples, whose interval covers far less than it says; t covers exactly
    where the units are normal. NaN values are left out and do not count in n.
    """
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[np.isfinite(sample)]
    n = len(sample)
    mean = float(sample.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n, "no interval: fewer than two units")
    error = float(sample.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n, f"{confidence:.0%} Student t", error)
