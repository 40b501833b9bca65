"""Student's t interval of a mean."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from cmma.statistics.student import student_mean


def test_the_interval_is_that_of_the_one_sample_t_test():
    values = [0.2, 0.5, 0.9]
    interval = student_mean(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.value == pytest.approx(1.6 / 3)


def test_missing_values_do_not_count_and_one_value_has_no_interval():
    assert student_mean([1.0, math.nan, 3.0]).n == 2
    assert math.isnan(student_mean([1.0]).low)
    assert math.isnan(student_mean([]).value)
