"""Eq. 7 and the excess interaction on readouts whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.cmig.effects import concatenate, pairwise_effects
from cmma.errors import DataError


def test_additive_readouts_have_no_excess(plant):
    effects = pairwise_effects(plant({i: 0.3 * i for i in range(12)}, {}, samples=30), range(12))
    assert np.abs(effects.excess_PN).max() < 1e-12 * effects.spread * 100
    assert len(effects.pairs_P2) == 12 * 11 / 2


def test_eq_7_of_an_additive_readout_is_the_targets_main_effect(plant):
    """The reason why the excess is reported beside Eq. 7."""
    readout = plant({1: 0.5, 4: 2.0, 9: 0.1}, {}, samples=20)
    effects = pairwise_effects(readout, [9, 1, 4])
    edges_E2, conditional_EN = effects.directed()
    for (i, j), conditional_N in zip(effects.features_K[edges_E2], conditional_EN, strict=True):
        assert i != j
        assert np.abs(conditional_N).mean() == pytest.approx(readout.mains[j].mean())


def test_a_planted_pair_is_the_only_excess_and_has_its_planted_size(plant):
    readout = plant(dict.fromkeys(range(6), 0.2), {(2, 5): 0.7}, samples=25)
    effects = pairwise_effects(readout, range(6))
    for pair, excess_N in zip(effects.pairs_P2.tolist(), effects.excess_PN, strict=True):
        expected_N = -readout.pairs[2, 5] if pair == [2, 5] else np.zeros(25)
        assert excess_N == pytest.approx(expected_N, abs=1e-12)


def test_redundant_features_worked_by_hand():
    """E = max(a1, a2) with both 1: either alone changes nothing, both together everything: I(1→2) = 1, excess −1."""

    def redundant(sets):
        return np.array([[max(1.0 - (0 in off), 1.0 - (1 in off))] * 2 for off in sets])

    effects = pairwise_effects(redundant, [0, 1])
    assert effects.main_KN.tolist() == [[0, 0], [0, 0]]
    assert effects.directed()[1].tolist() == [[-1, -1], [-1, -1]]
    assert effects.excess_PN.tolist() == [[-1, -1]]


def test_every_ablation_is_measured_once():
    asked = []

    def count(sets):
        asked.extend(sets)
        return np.zeros((len(sets), 3))

    pairwise_effects(count, range(10))
    assert len(asked) == len(set(asked)) == 1 + 10 + 45
    asked.clear()
    effects = pairwise_effects(count, [3, 7, 8], pairs=[(8, 3)])
    assert asked == [(), (3,), (7,), (8,), (3, 8)]
    assert effects.pairs_P2.tolist() == [[0, 2]]


def test_chunks_of_samples_join_to_the_whole(plant):
    effects = pairwise_effects(plant({0: 1, 1: 2, 2: 3}, {(0, 1): 1}, samples=10), range(3))

    def part(columns):
        return type(effects)(
            effects.features_K, effects.pairs_P2, effects.clean_N[columns], effects.single_KN[:, columns],
            effects.pair_PN[:, columns],
        )  # fmt: skip

    joined = concatenate([part(slice(0, 4)), part(slice(4, 10))])
    assert np.array_equal(joined.excess_PN, effects.excess_PN)
    other = pairwise_effects(plant({0: 1, 1: 2}, {}, samples=3), range(2))
    with pytest.raises(DataError, match="cannot be joined"):
        concatenate([effects, other])


def test_a_feature_listed_twice_is_refused(plant):
    with pytest.raises(DataError, match="twice"):
        pairwise_effects(plant({0: 1}, {}, samples=3), [0, 0])
