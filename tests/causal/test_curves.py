"""Curves over layers whose place is known because it was planted."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.causal.curves import by_image, centre, centre_of_mass, later_by, layer_table

LAYERS = range(12)


def bumps(middle: float, size: float, n: int = 30, seed: int = 0) -> np.ndarray:
    """Curves [n, 12] with a bump at `middle`, each image with its own strength, and noise."""
    rng = np.random.default_rng(seed)
    shape_L = np.exp(-((np.arange(12) - middle) ** 2) / 2)
    return size * (rng.uniform(0.5, 1.5, (n, 1)) * shape_L + rng.normal(0, 0.05, (n, 12)))


def test_centre_of_mass_by_hand():
    assert centre_of_mass(np.array([0.0, 1.0, 0.0, 3.0]), [0, 1, 2, 3]) == 2.5
    assert centre_of_mass(np.array([-5.0, 1.0, 1.0]), [4, 6, 8]) == 7  # what is negative has no weight
    assert np.isnan(centre_of_mass(np.array([-1.0, 0.0]), [0, 1]))


def test_queries_of_one_image_are_one_unit():
    values_NX, images = by_image(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [np.nan, 1.0]]), ["a", "a", "b", "c"])
    assert values_NX.tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert images == ["a", "b"]


def test_the_later_bump_is_found_whatever_its_size():
    early_IL, late_IL = bumps(3, 1.0), bumps(7, 0.01, seed=1)
    interval, p = later_by(early_IL, late_IL, LAYERS, n=999)
    assert interval.low < 4 < interval.high
    assert p == 1 / 1000  # beyond all permutations
    assert centre(early_IL, LAYERS, 500).value == pytest.approx(3, abs=0.3)
    back, _ = later_by(late_IL, early_IL, LAYERS, n=99)
    assert back.value == pytest.approx(-interval.value)


def test_a_flow_is_not_later_than_itself():
    curves_IL = bumps(5, 1.0)
    interval, p = later_by(curves_IL, 2 * curves_IL, LAYERS, n=199)
    assert interval.value == pytest.approx(0)
    assert p == 1


def test_exchangeable_curves_are_rejected_as_often_as_alpha():
    """Under the null p is uniform: of 60 pairs of curves at one place about 3 have p < 0.05."""
    pairs = [(bumps(5, 1.0, 12, 2 * seed), bumps(5, 1.0, 12, 2 * seed + 1)) for seed in range(60)]
    found = [later_by(*pair, LAYERS, 199)[1] for pair in pairs]
    assert sum(p < 0.05 for p in found) <= 8
    assert np.mean(found) == pytest.approx(0.5, abs=0.15)


def test_a_flow_without_effect_has_no_place():
    interval, p = later_by(np.zeros((5, 12)), bumps(5, 1.0, 5), LAYERS, n=99)
    assert np.isnan(interval.value)
    assert np.isnan(p)


def test_layers_are_tested_one_by_one():
    table = layer_table(bumps(3, 1.0), LAYERS, 500, 999)
    assert table["p"][3] == 1 / 1000
    assert table["value_low"][3] > 0
    assert table["p"][9:].min() > 0.001
