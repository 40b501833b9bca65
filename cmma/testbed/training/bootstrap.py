"""Confidence intervals that resample images, the independent units of every metric of the small models."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class Estimate(TypedDict):
    """A ratio with its 95% percentile-bootstrap interval over `images` resampled images and its denominator `n`."""

    value: float
    low: float
    high: float
    n: int
    images: int


def image_ratio(hits_N: np.ndarray, totals_N: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Σ hits / Σ totals over images, resampling images."""
    hits_N, totals_N = np.asarray(hits_N, dtype=float), np.asarray(totals_N, dtype=float)
    rng = np.random.default_rng(seed)
    n = len(hits_N)
    values = []
    for size in np.diff(np.append(np.arange(0, resamples, 500), resamples)):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=int(size))
        values.append((counts @ hits_N) / np.maximum(counts @ totals_N, 1))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return Estimate(
        value=float(hits_N.sum() / max(totals_N.sum(), 1)), low=float(low), high=float(high),
        n=int(totals_N.sum()), images=n,
    )  # fmt: skip
