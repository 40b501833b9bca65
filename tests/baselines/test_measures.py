"""Values, paired differences, winners: against scikit-learn, explicit loops and arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cmma.baselines.measures import Metric, change, mean_auroc, mean_ratio, measure_table, ratio


def test_areas_are_scikit_learn_s_and_weights_are_repetitions():
    rng = np.random.default_rng(0)
    truth_IC = rng.random((30, 3)) < 0.4
    scores_IC = np.round(rng.standard_normal((30, 3)) + truth_IC, 1)  # with ties
    measure = mean_auroc(scores_IC, truth_IC)
    expected = np.mean([roc_auc_score(truth_IC[:, c], scores_IC[:, c]) for c in range(3)])
    assert measure.statistic(np.ones((1, 30)))[0] == pytest.approx(expected)
    drawn = rng.integers(0, 30, 30)
    repeated = np.mean([roc_auc_score(truth_IC[drawn, c], scores_IC[drawn, c]) for c in range(3)])
    assert measure.statistic(np.bincount(drawn, minlength=30)[None].astype(float))[0] == pytest.approx(repeated)


def test_a_concept_that_no_image_carries_does_not_count():
    truth_IC = np.array([[True, False], [False, False]])
    assert mean_auroc(np.array([[1.0, 1.0], [0.0, 0.0]]), truth_IC).statistic(np.ones((1, 2)))[0] == 1


def test_ratios_pool_before_they_divide():
    both, either = np.array([[1.0, 0], [3, 2]]), np.array([[2.0, 1], [6, 3]])
    assert mean_ratio(both, either).statistic(np.ones((1, 2)))[0] == pytest.approx((4 / 8 + 2 / 4) / 2)


def test_a_rate_that_halves_changes_by_minus_fifty_percent():
    wrong, said = np.array([2.0, 0, 2, 4]), np.full(4, 4.0)
    assert change((wrong, said), (wrong / 2, said), relative=True).statistic(np.ones((1, 4)))[0] == pytest.approx(-50)
    assert change((said, said), (wrong, said), relative=False).statistic(np.ones((1, 4)))[0] == pytest.approx(-50)


def _table(better, larger=True):
    """Ours at one half, a rival, and a control at random."""
    rng = np.random.default_rng(0)
    base_I = rng.random(60) * 0.2 + 0.4
    one_I = np.ones(60)
    found = {Metric("control", "success", larger): {
        "ours": ratio(base_I, one_I), "rival": ratio(base_I + better, one_I),
        "floor": ratio(rng.random(60) * 0.1, one_I), "none": "it cannot",
    }}  # fmt: skip
    return measure_table(found, "ours", "floor", 500, 0).set_index("method")


def test_a_baseline_that_wins_is_named():
    table = _table(0.3)
    assert table["winner"].tolist() == [False, True, False, False]
    assert table["verdict"].tolist() == ["", "beats ours", "below ours", ""]
    assert table.loc["rival", "difference"] == pytest.approx(0.3)
    assert table.loc["rival", "difference_low"] == pytest.approx(0.3)  # paired: the images' own spread cancels
    assert table.loc["none", "reason"] == "it cannot"
    assert (table.loc[["ours", "rival"], "p"] < 0.001).all()
    assert np.isnan(table.loc["floor", "p"])
    assert table["control"].nunique() == 1


def test_where_less_is_better_the_lowest_wins():
    table = _table(0.3, larger=False)
    assert table.index[table["winner"]].tolist() == ["floor"]
    assert table.loc["rival", "verdict"] == "below ours"


def test_equals_have_no_winner():
    table = _table(0.0)
    assert not table["winner"].any()
    assert table.loc["rival", "verdict"] == "not apart from ours"
