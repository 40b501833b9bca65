"""Rank correlation against scipy, and the recall of a screen by counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from cmma.statistics.agreement import rank_correlation, screen_recall, top_recall


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a = rng.normal(size=40).round(1)  # with ties
    b = a + rng.normal(size=40)
    found = rank_correlation(a, b, 500)
    assert found.value == pytest.approx(spearmanr(a, b).statistic)
    assert found.low < found.value < found.high
    assert rank_correlation(a, a**3, 100).value == pytest.approx(1)
    assert np.isnan(rank_correlation(a[:2], b[:2]).value)


def test_recall_by_counting():
    """The screen's second largest is 5. A tenth of the sample reaches 5: of 50 others about 5, so 2 of 7 are held."""
    screened, sampled = np.array([9.0, 5.0, 1.0]), np.array([6.0] + [0.0] * 9)
    found = screen_recall(screened, sampled, n_rest=50, top=2)
    assert found.value == pytest.approx(2 / 7)
    assert found.low < 2 / 7 < found.high < 1


def test_recall_is_exact_where_everything_was_measured():
    assert screen_recall(np.array([3.0, 2.0]), np.array([2.5, 1.0]), n_rest=2, top=2).value == 2 / 3
    assert screen_recall(np.array([3.0, 2.0]), np.array([]), n_rest=0, top=2).value == 1
    assert np.isnan(screen_recall(np.array([3.0, 2.0]), np.array([]), n_rest=7, top=2).value)


def test_what_the_screen_missed_is_estimated_without_bias():
    """300 things, 40 screened by a noisy estimate: 1 / recall counts what was missed, and is right on average."""
    rng = np.random.default_rng(1)
    size = rng.exponential(size=300)
    order = np.argsort(-(size + rng.normal(0, 0.5, 300)))
    screened, rest = size[order[:40]], size[order[40:]]
    bar = np.sort(screened)[::-1][19]
    truth = (screened >= bar).sum() / (size >= bar).sum()
    drawn = [1 / screen_recall(screened, rng.choice(rest, 60, replace=False), 260, 20).value for _ in range(300)]
    assert np.mean(drawn) == pytest.approx(1 / truth, abs=4 * np.std(drawn) / 300**0.5)
    assert truth < 1


def test_recall_of_the_largest_by_counting():
    estimate_IF = np.array([[5.0, -4.0, 1.0, 0.0], [5.0, -4.0, 1.0, np.nan]])
    measured_IF = np.array([[3.0, 0.0, -9.0, 0.0], [3.0, 0.0, -9.0, np.nan]])
    assert top_recall(estimate_IF, measured_IF, 2, 50).value == 0.5
