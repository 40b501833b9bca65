"""Repeated measures against pingouin and statsmodels; change points against exhaustive search."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pingouin
import pytest
from statsmodels.stats.anova import AnovaRM

from cmma.errors import DataError
from cmma.statistics.changes import change_points
from cmma.statistics.repeated import greenhouse_geisser, kendalls_w, repeated_anova


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """15 units under three phases, as the paper's F(2, 28), with unequal variances and ties."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(15, 1)) + rng.normal(size=(15, 3)) * [0.2, 1.0, 2.0] + [0.0, 0.6, 1.4]
    return np.round(values, 1)


def _long(table: np.ndarray) -> pd.DataFrame:
    units, levels = table.shape
    return pd.DataFrame({"unit": np.repeat(np.arange(units), levels), "phase": np.tile(np.arange(levels), units),
                         "value": table.ravel()})


def test_anova_agrees_with_pingouin_and_statsmodels(table):
    ours = repeated_anova(table)
    theirs = pingouin.rm_anova(_long(table), dv="value", within="phase", subject="unit", correction=True, effsize="n2",
                               detailed=True).iloc[0]
    assert (ours.df_effect, ours.df_error) == (2, 28)
    assert ours.f == pytest.approx(theirs["F"])
    assert ours.p == pytest.approx(theirs["p_unc"])
    assert ours.epsilon == pytest.approx(theirs["eps"])
    assert ours.p_corrected == pytest.approx(theirs["p_GG_corr"])
    partial = pingouin.rm_anova(_long(table), dv="value", within="phase", subject="unit", effsize="np2").iloc[0]
    assert ours.partial_eta_squared == pytest.approx(partial["np2"])
    statsmodels = AnovaRM(_long(table), "value", "unit", within=["phase"]).fit().anova_table.iloc[0]
    assert ours.f == pytest.approx(statsmodels["F Value"])
    assert ours.p == pytest.approx(statsmodels["Pr > F"])


def test_eta_squared_is_the_share_of_the_whole_variance(table):
    grand = table.mean()
    between = len(table) * ((table.mean(0) - grand) ** 2).sum()
    assert repeated_anova(table).eta_squared == pytest.approx(between / ((table - grand) ** 2).sum())


def test_epsilon_is_one_under_sphericity_and_least_where_one_contrast_varies():
    rng = np.random.default_rng(1)
    assert greenhouse_geisser(rng.normal(size=(40_000, 4))) == pytest.approx(1, abs=0.01)
    one = rng.normal(size=(50, 1)) * [[1.0, -1.0, 0.0]]
    assert greenhouse_geisser(one) == pytest.approx(1 / 2)


def test_kendalls_w_agrees_with_pingouin(table):
    ours = kendalls_w(table)
    theirs = pingouin.friedman(_long(table), dv="value", within="phase", subject="unit").iloc[0]
    assert ours.w == pytest.approx(theirs["W"])
    assert ours.chi_squared == pytest.approx(theirs["Q"])
    assert ours.p == pytest.approx(theirs["p_unc"])
    assert kendalls_w([[1, 2, 3], [10, 20, 30]]).w == 1


def test_what_is_not_complete_is_refused():
    with pytest.raises(DataError, match="at least two units"):
        repeated_anova([[1.0, 2.0, 3.0]])
    with pytest.raises(DataError, match="1 are missing"):
        kendalls_w([[1.0, np.nan], [2.0, 3.0]])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_change_points_are_the_best_of_all(n):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(3, 11))

    def cost(at):
        return sum(((part - part.mean(1, keepdims=True)) ** 2).sum() for part in np.split(values, at, axis=1))

    assert change_points(values, n).at == min(combinations(range(1, 11), n), key=cost)


def test_steps_a_slope_and_nothing_are_told_apart():
    rng = np.random.default_rng(3)
    steps = np.repeat([0.1, 0.5, 0.9], 4) + rng.normal(0, 0.02, (5, 12))
    found = change_points(steps)
    assert found.at == (4, 8)
    assert found.preferred == "pieces"
    slope = np.linspace(0, 1, 12) + rng.normal(0, 0.05, (5, 12))
    assert change_points(slope).preferred == "line"
    assert change_points(rng.normal(0, 1, (5, 12))).preferred == "constant"


def test_pieces_are_as_long_as_asked():
    values = np.array([0.0, 5, 0, 0, 0, 0, 9, 9, 9])
    assert change_points(values, 1, shortest=2).at == (6,)
    assert min(np.diff([0, *change_points(values, 3, shortest=2).at, 9])) >= 2
