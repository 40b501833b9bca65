"""Heads that matter everywhere: NOTICE's rule by hand, and its overlap against chance by the exact distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hypergeom

from cmma.causal.config import TraceConfig
from cmma.causal.method_configs import UniversalHeadsConfig
from cmma.causal.methods.universal_heads import _halves, between_modalities, important, run, universal
from cmma.config import load_group
from cmma.errors import ConfigError, DataError
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples


def marked(heads, *sets):
    return np.array([[head in chosen for head in range(heads)] for chosen in sets])


def test_important_heads_lie_two_deviations_above_the_mean():
    """Nine heads of 0 and one of ±1: mean 0.1, σ 0.3, threshold 0.7; the sign does not matter."""
    score = np.zeros(10)
    score[4] = -1
    assert np.flatnonzero(important(score, 2.0)).tolist() == [4]
    assert np.flatnonzero(important(score, 2.9)).tolist() == [4]
    assert not important(score, 3.1).any()
    score[[2, 3]] = 0.5  # mean 0.2, σ 0.33: 0.5 is below 0.86
    assert np.flatnonzero(important(score, 2.0)).tolist() == [4]


def test_universal_heads_are_important_in_every_task_of_both_modalities():
    marks = {"image": marked(12, {1, 5}, {1, 7}), "text": marked(12, {1}, {1, 5})}
    assert np.flatnonzero(universal(marks, 2, 100, 0).universal_H).tolist() == [1]
    assert np.flatnonzero(universal(marks, 1, 100, 0).universal_H).tolist() == [1, 5]


def test_chance_overlap_of_two_sets_is_hypergeometric():
    """One task per modality, 6 and 5 of 20 heads, 4 in common: expected 1.5."""
    marks = {"image": marked(20, set(range(6))), "text": marked(20, {0, 1, 2, 3, 19})}
    overlap = universal(marks, 1, 20_000, 0)
    exact = hypergeom.sf(3, 20, 6, 5)
    assert overlap.expected == pytest.approx(1.5, abs=0.03)
    assert overlap.p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 20_000) ** 0.5)
    both = between_modalities(marks)
    assert (both["image"], both["text"], both["both"]) == (6, 5, 4)
    assert both["p"] == pytest.approx(exact)
    assert both["by_chance"] == pytest.approx(1.5)


def test_the_modalities_of_a_task_share_no_pair():
    samples = list(generate_samples("pairs", 0, 80))
    halves = _halves(samples, "color", per_task=10)
    swapped, replaced = ({each.clean.sample.meta["pair"]["id"] for each in half} for half in halves.values())
    assert swapped
    assert replaced
    assert not swapped & replaced
    assert all(each.clean.text == each.corrupt.text for each in halves["image"])
    assert all(each.clean.key == each.corrupt.key for each in halves["text"])
    with pytest.raises(DataError, match="pairs of factor 'color'"):
        _halves(samples[:2], "color", 4)


def test_cross_attention_heads_of_a_blip(pairs, tiny_clip):
    model = load_model(ModelSpec(**load_group("model", "toy_blip")))
    options = UniversalHeadsConfig(tasks=["shape", "color"], per_task=2, n_permutations=100)
    config = TraceConfig(method="universal_heads", module="cross_head", correct_only=False, universal_heads=options)
    found = run(model, list(generate_samples("pairs", 0, 60)), config)
    assert found.summary["heads"] == 4 * 4
    assert len(found.tables["heads"]) == 2 * 2 * 16
    assert found.tensors["score_MTH"].shape == (2, 2, 16)
    table = found.tables["heads"]
    for (modality, task), own in table.groupby(["modality", "task"]):
        size = own["recovery"].abs()
        expected = own.loc[size >= size.mean() + 2 * size.std(ddof=0), "row"]
        assert own.loc[own["important"], "row"].tolist() == expected.tolist(), (modality, task)
    with pytest.raises(ConfigError, match=r"set trace\.module to head or cross_head"):
        run(model, pairs, TraceConfig(method="universal_heads"))
    with pytest.raises(ConfigError, match="tiny clip answers none"):
        run(tiny_clip, pairs, config)
