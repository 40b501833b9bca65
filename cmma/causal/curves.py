"""Curves over layers with statistics over images, and which of two curves has its weight in earlier layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmma.statistics.bootstrap import RESAMPLES, Interval, bootstrap_columns, bootstrap_statistic
from cmma.statistics.permutation import sign_flip_p

Array = NDArray[np.float64]


def by_image(values_NX: Array, keys: Sequence[str]) -> tuple[Array, list[str]]:
    """Mean over the queries of each image, [I, X], and the images; those without a value are left out."""
    table = pd.DataFrame(values_NX).groupby(np.asarray(keys, dtype=object), sort=False).mean().dropna()
    return table.to_numpy(float), list(table.index)


def layer_table(
    values_IL: Array, layers: Sequence[int], n_resamples: int = RESAMPLES, n_permutations: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row per layer: n, value with value_se, value_low, value_high (95% BCa over images), p (sign flips)."""
    found = bootstrap_columns(values_IL, n_resamples, seed)
    p_L = sign_flip_p(values_IL, n_permutations, seed) if len(values_IL) else np.full(len(layers), np.nan)
    return pd.DataFrame({
        "layer": list(layers), "n": len(values_IL), "value": found.value, "value_se": found.standard_error,
        "value_low": found.low, "value_high": found.high, "p": p_L,
    })  # fmt: skip


def centre_of_mass(mean_XL: Array, layers: Sequence[int]) -> Array:
    """Mean layer of curves [..., L], weighted by their positive part; NaN where nothing is positive."""
    weight_XL = np.maximum(mean_XL, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weight_XL * np.asarray(layers, dtype=float)).sum(-1) / weight_XL.sum(-1)


def centre(values_IL: Array, layers: Sequence[int], n_resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Centre of mass of the mean curve; the interval resamples images."""

    def statistic(image_RI: Array, axis: int = -1) -> Array:
        return centre_of_mass(values_IL[image_RI.astype(int)].mean(axis=-2), layers)

    return bootstrap_statistic(statistic, np.arange(len(values_IL)), n_resamples=n_resamples, seed=seed)


def later_by(
    first_IL: Array, second_IL: Array, layers: Sequence[int], n: int = RESAMPLES, seed: int = 0
) -> tuple[Interval, float]:
    """How many layers later the second mean curve has its centre of mass than the first, on the same images.

    Both are divided by their mean weight first, so that the size of an effect is no part of its place. The p-value is
    that of exchanging the two curves of an image at random (two-sided; the data count among the permutations). The
    interval resamples images.
    """
    scaled = []
    for values_IL in (first_IL, second_IL):
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled.append(values_IL / np.maximum(values_IL.mean(axis=0), 0).sum())

    def gap(first_XL: Array, second_XL: Array) -> Array:
        return centre_of_mass(second_XL, layers) - centre_of_mass(first_XL, layers)

    def statistic(image_RI: Array, axis: int = -1) -> Array:
        chosen = image_RI.astype(int)
        return gap(scaled[0][chosen].mean(axis=-2), scaled[1][chosen].mean(axis=-2))

    interval = bootstrap_statistic(statistic, np.arange(len(first_IL)), n_resamples=n, seed=seed)
    if np.isnan(interval.value):
        return interval, float("nan")
    signs_RI = 2.0 * np.random.default_rng(seed).integers(0, 2, size=(n, len(first_IL))) - 1
    middle_L, half_gap_IL = (scaled[0] + scaled[1]).mean(axis=0) / 2, (scaled[1] - scaled[0]) / 2
    moved_RL = signs_RI @ half_gap_IL / len(first_IL)
    shuffled_R = gap(middle_L - moved_RL, middle_L + moved_RL)
    less = np.abs(shuffled_R) < abs(interval.value) - 1e-9  # an undefined one counts as extreme
    return interval, (int((~less).sum()) + 1) / (n + 1)
