"""Intervals against scipy, theory and exact binomial bounds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from cmma.statistics.bootstrap import (
    Interval,
    bootstrap_columns,
    bootstrap_count_ratio,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
    proportion,
)


def test_bca_of_the_mean_equals_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    ours = bootstrap_mean(values, n_resamples=4000, seed=7)
    rng = np.random.default_rng(7)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, batch=500, rng=rng, method="BCa")
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval))
    assert ours.value == pytest.approx(values.mean())
    assert ours.kind == "95% BCa bootstrap"
    assert ours.standard_error == pytest.approx(values.std() / np.sqrt(80), rel=0.05)


def test_interval_of_the_mean_covers_the_truth_95_of_100_times():
    rng = np.random.default_rng(1)
    draws = [bootstrap_mean(rng.normal(3, 2, size=60), n_resamples=999, seed=i) for i in range(300)]
    covered = np.mean([draw.low <= 3 <= draw.high for draw in draws])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 300))


def test_column_intervals_agree_with_scipy_column_by_column():
    values_NC = np.random.default_rng(2).gamma(0.7, size=(48, 5))
    ours = bootstrap_columns(values_NC, n_resamples=20_000)
    for column in range(5):
        theirs = bootstrap_mean(values_NC[:, column], n_resamples=20_000, seed=3)
        spread = theirs.standard_error
        assert ours.low[column] == pytest.approx(theirs.low, abs=0.08 * spread)
        assert ours.high[column] == pytest.approx(theirs.high, abs=0.12 * spread)
        assert ours.standard_error[column] == pytest.approx(spread, rel=0.03)


def test_constant_columns_have_no_interval():
    values_NC = np.column_stack([np.ones(20), np.arange(20.0)])
    ours = bootstrap_columns(values_NC, n_resamples=500)
    assert np.isnan(ours.low[0])
    assert np.isnan(ours.high[0])
    assert ours.low[1] < 9.5 < ours.high[1]


def test_ratio_resamples_images_not_mentions():
    """Ten identical mentions per image carry one image's information: the interval is √10 wider than naive."""
    wrong = np.array([0, 10] * 30)
    mentions = np.full(60, 10)
    ours = bootstrap_ratio(wrong, mentions, n_resamples=4000)
    assert ours.value == 0.5
    assert ours.half_width == pytest.approx(1.96 * 0.5 / math.sqrt(60), rel=0.08)


def test_ratio_of_sums_is_not_the_mean_of_ratios():
    assert bootstrap_ratio([1, 0, 3], [1, 1, 10], n_resamples=200).value == pytest.approx(4 / 12)


def test_ratio_without_any_mention_is_undefined():
    ours = bootstrap_ratio([0, 0, 0], [0, 0, 0])
    assert math.isnan(ours.value)
    assert math.isnan(ours.low)


def test_ratio_names_the_resamples_that_were_undefined():
    ours = bootstrap_ratio([1, 0, 0, 0, 0, 1], [1, 2, 0, 0, 0, 1], n_resamples=2000)
    assert "undefined" in ours.kind
    assert ours.low <= ours.value <= ours.high


def test_one_unit_or_a_constant_sample_has_no_interval():
    single, constant, empty = bootstrap_mean([4.0]), bootstrap_mean([2.0, 2.0, 2.0]), bootstrap_mean([])
    assert single.value == 4
    assert constant.value == 2
    assert math.isnan(empty.value)
    assert all(math.isnan(interval.low) and "no interval" in interval.kind for interval in (single, constant, empty))
    assert not constant.low > 0  # a decision that asks for an interval above a threshold says no


def test_all_true_gives_the_rule_of_three():
    """Hanley and Lippman-Hand 1983: no failure in n trials bounds the rate by about 3/n (one-sided 95%)."""
    ours = bootstrap_mean(np.ones(100, dtype=bool))
    assert ours.high == 1
    assert ours.low == pytest.approx(0.025 ** (1 / 100))
    assert proportion(0, 100, confidence=0.9).high == pytest.approx(3 / 100, rel=0.02)


def test_paired_statistic_resamples_pairs():
    rng = np.random.default_rng(5)
    shared = rng.normal(size=100) * 10
    a, b = shared + 1 + rng.normal(size=100) * 0.1, shared

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    paired = bootstrap_statistic(difference, a, b, n_resamples=1000)
    unpaired = bootstrap_statistic(difference, a, b, n_resamples=1000, paired=False)
    assert paired.half_width < unpaired.half_width / 20
    with pytest.raises(ValueError, match="differ in length"):
        bootstrap_statistic(difference, a, b[:50])


def test_interval_is_json_and_readable():
    interval = Interval(0.5, 0.4, 0.6, 20, "95% BCa bootstrap")
    assert str(interval) == "0.5 [0.4, 0.6] (95% BCa bootstrap, n=20)"
    assert interval.half_width == pytest.approx(0.1)
    assert json.loads(json.dumps(interval.as_dict(), allow_nan=False))["standard_error"] is None


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, 500, seed=1) == bootstrap_mean(values, 500, seed=1)


@pytest.mark.parametrize("n", [40, 600])
def test_ratio_of_counts_has_scipys_interval(n: int):
    """Drawing how often each distinct pair occurs is drawing images: bounds agree within the noise of the resamples."""
    rng = np.random.default_rng(n)
    mentions = rng.poisson(3, n)
    wrong = rng.binomial(mentions, 0.15)
    ours, scipys = (fn(wrong, mentions, n_resamples=20_000) for fn in (bootstrap_count_ratio, bootstrap_ratio))
    assert (ours.value, ours.n, ours.kind) == (scipys.value, scipys.n, scipys.kind)
    assert ours.standard_error == pytest.approx(scipys.standard_error, rel=0.03)
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high), abs=0.1 * scipys.standard_error)


def test_ratio_of_counts_where_there_is_no_interval():
    for wrong, mentions in (([0, 0], [0, 0]), ([1, 1], [2, 2]), ([1], [2]), ([0, 0, 0], [0, 1, 0])):
        ours, scipys = bootstrap_count_ratio(wrong, mentions, 50), bootstrap_ratio(wrong, mentions, 50)
        assert ours.kind.split(",")[0] == scipys.kind.split(",")[0]
