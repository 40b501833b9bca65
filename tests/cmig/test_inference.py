"""Error rates of the edge tests, on planted interactions and on none."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.cmig.effects import Effects, pairwise_effects
from cmma.cmig.inference import class_shares, edge_table, strength_class
from cmma.errors import DataError

FAST = {"permutations": 1000, "max_permutations": 20_000, "resamples": 300}


def test_planted_pairs_are_found_and_nothing_else(plant):
    """At a false discovery rate of 0.05: precision (on average, as the rate is defined) and recall at least 0.9."""
    precision, recall = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        true = {tuple(sorted(rng.choice(16, 2, replace=False).tolist())): size for size in np.linspace(0.3, 0.9, 12)}
        readout = plant(dict.fromkeys(range(16), 0.4), true, samples=48, noise=0.1, seed=seed)
        edges = edge_table(pairwise_effects(readout, range(16)), **FAST)
        found = edges[(edges.source < edges.target) & (edges.q_excess < 0.05)]
        hits = set(zip(found.source, found.target, strict=True)) & set(true)
        precision.append(len(hits) / len(found))
        recall.append(len(hits) / len(true))
    assert np.mean(precision) >= 0.9
    assert np.mean(recall) >= 0.9


def test_independent_features_make_no_more_false_discoveries_than_alpha(plant):
    """Noisy but additive: the share of seeds with any discovery (under the null, FDR = FWER) is at most alpha."""
    seeds_with_discovery = {"q_excess": 0, "q_beyond": 0}
    for seed in range(40):
        readout = plant(dict.fromkeys(range(10), 0.3), {}, samples=40, noise=0.2, seed=seed)
        edges = edge_table(pairwise_effects(readout, range(10)), 500, 20_000, resamples=50, seed=seed)
        for name in seeds_with_discovery:
            seeds_with_discovery[name] += (edges[name] < 0.05).any()
    bound = 0.05 * 40 + 2 * np.sqrt(40 * 0.05 * 0.95)
    assert all(count <= bound for count in seeds_with_discovery.values()), seeds_with_discovery


def test_p_is_uniform_under_the_null(plant):
    p = {"p_excess": [], "p_beyond": []}
    for seed in range(400):
        effects = pairwise_effects(plant({0: 0.5, 1: 0.5}, {}, samples=24, noise=0.3, seed=seed), range(2))
        edges = edge_table(effects, 199, None, resamples=10, seed=seed)
        for name, values in p.items():
            values.append(edges[name].iloc[0])
    for values in p.values():
        for alpha in (0.05, 0.2, 0.5):
            expected = pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / 400))
            assert np.mean(np.array(values) <= alpha) == expected


def test_rounding_is_not_an_interaction(plant):
    """float32 forward passes differ in the seventh digit; additive features must not become an edge by it."""
    exact = pairwise_effects(plant(dict.fromkeys(range(8), 0.3), {}, samples=30), range(8))
    runs = (exact.clean_N, exact.single_KN, exact.pair_PN)
    rounded = Effects(exact.features_K, exact.pairs_P2, *(run.astype(np.float32).astype(float) for run in runs))
    assert np.abs(rounded.excess_PN).max() > 0
    edges = edge_table(rounded, **FAST)
    assert (edges.p_excess == 1).all()
    assert (edges.n_interacting == 0).all()
    assert np.isnan(edges.excess_low).all()


def test_gating_shows_in_both_statistics_and_sign_change_only_in_the_excess(plant):
    """i off takes j's effect away: |effect| and effect change. i off turns it round: only the signed effect does."""
    rng = np.random.default_rng(1)
    n = 40
    base_N, effect_N = rng.normal(size=n), rng.uniform(0.5, 1.5, n)

    def with_j_after_i(factor):
        single_KN = np.stack([base_N, base_N - effect_N])
        return Effects(np.array([0, 1]), np.array([[0, 1]]), base_N, single_KN, (base_N - factor * effect_N)[None])

    gated = edge_table(with_j_after_i(0.0), **FAST).iloc[0]
    assert gated.strength == 0
    assert gated.beyond == pytest.approx(-gated.target_effect)
    assert gated.q_beyond < 0.01
    assert gated.q_excess < 0.01
    turned = edge_table(with_j_after_i(-1.0), **FAST).iloc[0]
    assert turned.beyond == pytest.approx(0)
    assert turned.p_beyond == 1
    assert turned.q_excess < 0.01


def test_an_interaction_of_changing_sign_is_in_the_mean_absolute_excess_only():
    """What no sign-flip test can see; the documented limit."""
    n = 40
    base_N, sign_N = np.random.default_rng(2).normal(size=n), np.tile([1.0, -1.0], n // 2)
    effects = Effects(np.array([0, 1]), np.array([[0, 1]]), base_N, np.stack([base_N, base_N]), (base_N + sign_N)[None])
    edge = edge_table(effects, **FAST).iloc[0]
    assert edge.p_excess == 1
    assert edge.excess == pytest.approx(1 / effects.spread)


def test_strengths_are_in_units_of_the_clean_spread(plant):
    one = pairwise_effects(plant({0: 1, 1: 2}, {(0, 1): 1}, samples=20), range(2))
    ten = Effects(one.features_K, one.pairs_P2, *(10 * a for a in (one.clean_N, one.single_KN, one.pair_PN)))
    assert edge_table(one, **FAST).strength.to_numpy() == pytest.approx(edge_table(ten, **FAST).strength.to_numpy())
    constant = Effects(one.features_K, one.pairs_P2, np.ones(20), np.ones((2, 20)), np.ones((1, 20)))
    with pytest.raises(DataError, match="does not vary"):
        edge_table(constant)


def test_classes_at_the_papers_cuts():
    """Section 5.2: strong I > 0.5, moderate 0.2 < I ≤ 0.5, weak I ≤ 0.2."""
    classes = strength_class(np.array([0.51, 0.5, 0.21, 0.2, 0.0])).tolist()
    assert classes == ["strong", "moderate", "moderate", "weak", "weak"]


@pytest.mark.parametrize("measure", ["strength", "excess"])
def test_shares_add_up_and_lie_in_their_intervals(plant, measure):
    pairs = {(i, i + 1): 0.1 * i for i in range(11)}
    effects = pairwise_effects(plant({i: 0.07 * i for i in range(12)}, pairs, samples=40), range(12))
    shares = class_shares(effects, measure, resamples=500)
    assert shares.strong.value + shares.moderate.value + shares.weak.value == pytest.approx(1)
    assert shares.weak.low <= shares.weak.value <= shares.weak.high
    assert shares.weak.low < shares.weak.high
    strength = edge_table(effects, **FAST)[measure]
    assert shares.strong.value == pytest.approx((strength > 0.5).mean())
