"""Screened pairs against finite differences and exact ablation; the recall estimate against known populations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal.queries import caption_queries, question_queries
from cmma.causal.readout import collate_queries
from cmma.causal.rivals import prepare_readout
from cmma.cmig.ablation import FeatureAblation
from cmma.cmig.screening import choose_pairs, cross_differences, estimated_recall

LAYER, FEATURES = 1, [3, 7, 11, 20]
SHARE = 0.01


@pytest.fixture(params=["llava", "clip"])
def ablation(request, tiny, tiny_clip, dictionary, scenes):
    model = {"llava": tiny, "clip": tiny_clip}[request.param]
    asked = question_queries(scenes[:3], per_sample=1) if request.param == "llava" else caption_queries(scenes[:3])
    readout, queries = prepare_readout(model, asked, "log_probability" if request.param == "llava" else "auto")
    batch = collate_queries(model, queries)
    return FeatureAblation(model, dictionary(model, LAYER), LAYER, batch, queries, FEATURES, readout)


def test_slopes_are_derivatives_of_ablation_beside_what_is_off(ablation):
    """With feature 0 off, ablating a hundredth of the others changes the readout by a hundredth of the slope."""
    n, k = len(ablation.queries), len(FEATURES)
    off = torch.zeros(n, k)
    off[:, 0] = 1
    slopes = ablation.slopes(torch.arange(n), off)
    base = ablation._run(torch.arange(n), off)
    for j in range(1, k):
        more, less = off.clone(), off.clone()
        more[:, j], less[:, j] = SHARE, -SHARE
        central = (ablation._run(torch.arange(n), more) - ablation._run(torch.arange(n), less)) / (2 * SHARE)
        torch.testing.assert_close(slopes[:, j], central, rtol=0.02, atol=5e-3 * float(base.std() + 1e-3))


def test_cross_differences_are_excess_where_the_second_feature_is_small(ablation):
    """Exact in one feature and linear in the other: the mean of both orders, each by an explicit finite difference."""
    estimate = cross_differences(ablation)
    n, k = len(ablation.queries), len(FEATURES)
    rows = torch.arange(n)

    def slope(i, j):
        off = torch.zeros(n, k)
        off[:, i] = 1
        values = []
        for amount in (SHARE, -SHARE):
            both, alone = off.clone(), torch.zeros(n, k)
            both[:, j], alone[:, j] = amount, amount
            values.append(ablation._run(rows, both) - ablation._run(rows, alone))
        return ((values[0] - values[1]) / (2 * SHARE)).double().numpy()

    expected = (slope(1, 2) + slope(2, 1)) / 2
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(estimate[:, 1, 2], expected, rtol=0.05, atol=1e-2 * np.abs(estimate).max())
    np.testing.assert_array_equal(estimate, estimate.transpose(0, 2, 1))


def test_a_readout_that_is_bilinear_in_the_features_is_screened_exactly():
    """E = Σ m_i a_i + Σ c_ij a_i a_j: first order beside an exact ablation is everything there is."""
    rng = np.random.default_rng(0)
    mains, pairs = rng.normal(size=6), np.triu(rng.normal(size=(6, 6)), 1)

    class Bilinear:
        active_BK, rows_at_once = np.ones((2, 6), dtype=bool), 5

        class model:
            device = "cpu"

        def slopes(self, row_R, off_RK):
            kept = (1 - off_RK).double().requires_grad_()
            total = kept @ torch.from_numpy(mains) + ((kept @ torch.from_numpy(pairs)) * kept).sum(1)
            return -torch.autograd.grad(total.sum(), kept)[0]

    estimate = cross_differences(Bilinear())
    np.testing.assert_allclose(estimate[0], pairs + pairs.T, atol=1e-12)


def test_chosen_pairs_are_the_first_and_a_weighted_sample_of_the_rest():
    rng = np.random.default_rng(1)
    score = rng.random((20, 20))
    score = score + score.T
    chosen = choose_pairs(score, 30, 40, seed=3)
    assert len(chosen) == 70
    assert (chosen["i"] < chosen["j"]).all()
    assert chosen["weight"].sum() == pytest.approx(20 * 19 / 2)
    top = chosen[chosen["place"] == "top"]
    assert top["screen"].min() >= np.sort(score[np.triu_indices(20, 1)])[-30]
    everything = choose_pairs(score, 1000, 40)
    assert len(everything) == 190
    assert (everything["weight"] == 1).all()


def test_recall_is_estimated_without_bias_and_its_interval_covers():
    """190 populations of 780 pairs with a known number of true ones; the screen ranks them with noise."""
    rng = np.random.default_rng(2)
    values, covered, truths = [], 0, []
    upper = np.triu_indices(40, 1)
    for trial in range(190):
        true = rng.random(len(upper[0])) < 0.1
        score = np.zeros((40, 40))
        score[upper] = true * 1.0 + rng.normal(0, 0.6, len(true))
        chosen = choose_pairs(score, 150, 150, seed=trial)
        flags = np.zeros((40, 40), dtype=bool)
        flags[upper] = true
        is_true = flags[chosen["i"], chosen["j"]]
        actual = is_true[chosen["place"] == "top"].sum() / true.sum()
        found = estimated_recall(chosen, is_true).recall
        values.append(found.value)
        truths.append(actual)
        covered += found.low <= actual <= found.high
    assert np.mean(values) == pytest.approx(np.mean(truths), abs=0.02)
    assert covered >= 175  # 95% of 190 is 180.5; 175 or fewer has p < 0.05


def test_recall_of_everything_is_one_and_of_nothing_undefined():
    everything = choose_pairs(np.ones((5, 5)), 10, 0)
    assert estimated_recall(everything, np.ones(10)).recall.value == 1
    assert np.isnan(estimated_recall(everything, np.zeros(10)).recall.value)
