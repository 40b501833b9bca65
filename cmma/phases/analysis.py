"""Are there phases? Thirds of the depth as the paper has them, change points, and the tests of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import curve_fit

from cmma.errors import DataError
from cmma.statistics.changes import change_points
from cmma.statistics.repeated import kendalls_w, repeated_anova

N_PHASES = 3
SHORTEST = 2
"""Layers of a piece, at least: a level of its own for every layer would fit anything."""
GRID = 12
"""Relative depths on which models of different depths are laid over each other: the paper's twelve layers."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A model with a dictionary seed: its activity at every layer.

    Attributes:
        activity_L: `cross_modal_activity`. activity_RL: in resamples of the samples.
    """

    model: str
    seed: int
    activity_L: NDArray[np.float64]
    activity_RL: NDArray[np.float64]


def phase_of(n_layers: int) -> NDArray[np.int64]:
    """Phase 0, 1 or 2 of every layer: thirds of the depth; of twelve layers, 1–4, 5–8 and 9–12 as in the paper.

    Raises:
        DataError: fewer than three layers.
    """
    if n_layers < N_PHASES:
        raise DataError(f"{n_layers} layers cannot be divided into {N_PHASES} phases")
    phase_L = np.arange(n_layers) * N_PHASES // n_layers
    return phase_L.astype(np.int64)


def phase_means(unit: Unit) -> NDArray[np.float64]:
    """Mean activity in each third, [3]."""
    phase_L = phase_of(len(unit.activity_L))
    return np.array([unit.activity_L[phase_L == phase].mean() for phase in range(N_PHASES)])


def relative_depth(n_layers: int) -> NDArray[np.float64]:
    """Depth of every layer in (0, 1): the middle of its share of the network."""
    return (np.arange(n_layers) + 0.5) / n_layers


@dataclass(frozen=True)
class Fit:
    """R² of a·exp(b·depth) and of a straight line on the same points; NaN where there are too few."""

    r2_exponential: float
    r2_line: float
    rate: float
    n: int


def fit_rise(depth_N: ArrayLike, activity_N: ArrayLike) -> Fit:
    """Is the rise exponential? Least squares of both curves, two parameters each."""
    x_N, y_N = (np.asarray(values, dtype=np.float64) for values in (depth_N, activity_N))
    total = float(((y_N - y_N.mean()) ** 2).sum()) if len(y_N) else 0.0
    if len(np.unique(x_N)) < 3 or total <= 0:
        return Fit(float("nan"), float("nan"), float("nan"), len(y_N))
    slope, offset = np.polyfit(x_N, y_N, 1)
    line = float(((y_N - slope * x_N - offset) ** 2).sum())

    def curve(x: NDArray[np.float64], scale: float, rate: float) -> NDArray[np.float64]:
        return scale * np.exp(rate * (x - x_N.mean()))

    start = (max(y_N.mean(), 1e-6), slope / max(abs(y_N.mean()), 1e-6))
    (scale, rate), _ = curve_fit(curve, x_N, y_N, p0=start, maxfev=20_000)
    exponential = float(((y_N - curve(x_N, scale, rate)) ** 2).sum())
    return Fit(1 - exponential / total, 1 - line / total, float(rate), len(y_N))


def changes_of(units: Sequence[Unit], most: int) -> dict[str, Any]:
    """Change points that the seeds of one model have in common, with the range of each in resamples of the samples.

    Returns:
        `at` (layers that begin a piece), `low` and `high` (95% percentile range of each, number of points held fixed),
        `preferred` (pieces, a line or one constant, by BIC), `bic`, `bic_line`, `bic_constant`.
    """
    found = change_points(np.stack([unit.activity_L for unit in units]), most=most, shortest=SHORTEST)
    resampled = [
        change_points(np.stack([unit.activity_RL[row] for unit in units]), n=len(found.at), shortest=SHORTEST).at
        for row in range(len(units[0].activity_RL))
    ]
    return _with_range(found, resampled)


def pooled_changes(units: Sequence[Unit], most: int, n_resamples: int, seed: int) -> dict[str, Any]:
    """Change points of all units on a common grid of relative depths; ranges from resampling the units."""
    common_UG = np.stack([on_grid(unit.activity_L) for unit in units])
    found = change_points(common_UG, most=most, shortest=SHORTEST)
    rng = np.random.default_rng(seed)
    resampled = [
        change_points(common_UG[rng.integers(len(units), size=len(units))], n=len(found.at), shortest=SHORTEST).at
        for _ in range(n_resamples)
    ]
    return _with_range(found, resampled)


def on_grid(activity_L: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear interpolation to `GRID` relative depths."""
    return np.interp(relative_depth(GRID), relative_depth(len(activity_L)), activity_L)


def _with_range(found: Any, resampled: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    bounds = np.quantile(np.array(resampled), [0.025, 0.975], axis=0) if found.at else np.empty((2, 0))
    return {
        "at": list(found.at), "low": bounds[0].tolist(), "high": bounds[1].tolist(), "preferred": found.preferred,
        "bic": found.bic, "bic_line": found.bic_line, "bic_constant": found.bic_constant,
    }


def analyse(units: Sequence[Unit], most: int, n_resamples: int, seed: int) -> dict[str, Any]:
    """Every test of section 5.3, JSON-like.

    `anova` and `concordance` are over units and thirds and need two units; `rise` is of the middle third, all units
    together; `changes` by model and `pooled_changes` are the alternative to fixed thirds.
    """
    means_UP = np.stack([phase_means(unit) for unit in units])
    middle = [
        (depth, value) for unit in units
        for depth, value, phase in zip(
            relative_depth(len(unit.activity_L)), unit.activity_L, phase_of(len(unit.activity_L)), strict=True)
        if phase == 1
    ]
    rise = fit_rise([depth for depth, _ in middle], [value for _, value in middle])
    several = len(units) > 1
    models = dict.fromkeys(unit.model for unit in units)
    return {
        "n_units": len(units), "phase_means": means_UP.mean(axis=0).tolist(),
        "phase_sd": means_UP.std(axis=0, ddof=1).tolist() if several else None,
        "anova": repeated_anova(means_UP).as_dict() if several else None,
        "concordance": kendalls_w(means_UP).as_dict() if several else None,
        "rise": {name: None if value != value else value for name, value in vars(rise).items()},
        "changes": {model: changes_of([unit for unit in units if unit.model == model], most) for model in models},
        "pooled_changes": pooled_changes(units, most, n_resamples, seed) if several else None,
    }


def unit_table(units: Sequence[Unit]) -> pd.DataFrame:
    """One row per unit and layer: model, seed, layer, depth, phase (1 to 3), activity, activity_low, activity_high.

    The 95% interval is the basic bootstrap's, 2·activity − quantile: a product of means of few samples comes out too
    small, in the resamples once more than in the data, and this takes the difference off instead of adding it.
    """
    return pd.concat([
        pd.DataFrame({
            "model": unit.model, "seed": unit.seed, "layer": np.arange(len(unit.activity_L)),
            "depth": relative_depth(len(unit.activity_L)), "phase": phase_of(len(unit.activity_L)) + 1,
            "activity": unit.activity_L,
            "activity_low": 2 * unit.activity_L - np.quantile(unit.activity_RL, 0.975, axis=0),
            "activity_high": 2 * unit.activity_L - np.quantile(unit.activity_RL, 0.025, axis=0),
        })
        for unit in units
    ], ignore_index=True)  # fmt: skip
