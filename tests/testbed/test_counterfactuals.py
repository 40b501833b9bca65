"""Counterfactual questions and complex concepts against an independent reading of the scene."""

from __future__ import annotations

import pytest

from cmma.causal.queries import replacement_contrasts
from cmma.data.concepts import named_objects
from cmma.errors import ConfigError
from cmma.testbed.counterfactuals import SETS
from cmma.testbed.generate import generate_samples


@pytest.fixture(scope="module")
def samples():
    return list(generate_samples("balanced", 0, 150, seed=5, questions_per_image=0))


def test_both_questions_are_answered_right_and_differ_in_their_constraint_alone(samples, brute_force):
    seen = set()
    for sample in samples:
        for name, entry in sample.meta["counterfactuals"].items():
            seen.add(name)
            instead = entry["replacement"]
            assert brute_force(sample.objects, entry["question"]) == entry["answer"]
            assert brute_force(sample.objects, instead["question"]) == instead["answer"]
            assert entry["answer"].split()[0] != instead["answer"].split()[0]
            ours, theirs = entry["question"].split(), instead["question"].split()
            changed = [place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
            where = {"relation": {2, 3}, "referent": {-1, -2}, "count": {2, 3}, "negation": {2}, "logic": {4}}[name]
            assert changed
            assert all(place in where or place - len(ours) in where for place in changed)
    assert seen == set(SETS)


def test_each_set_can_be_traced(samples):
    for name in SETS:
        contrasts = replacement_contrasts(samples, name)
        assert len(contrasts) > 15
        assert all(each.clean.sample is each.corrupt.sample for each in contrasts)
        assert all(each.clean.text != each.corrupt.text for each in contrasts)


def test_complex_concepts_follow_boolean_algebra(samples):
    for sample in samples:
        red, ring = set(named_objects("red", sample.objects)), set(named_objects("ring", sample.objects))
        everything = set(range(len(sample.objects)))
        assert set(named_objects("red ring", sample.objects)) == red & ring
        assert set(named_objects("red AND ring", sample.objects)) == red & ring
        assert set(named_objects("red OR ring", sample.objects)) == red | ring
        assert set(named_objects("red AND NOT ring", sample.objects)) == red - ring
        neither = set(named_objects("NOT red AND NOT ring", sample.objects))
        assert neither == everything - (red | ring)  # De Morgan


def test_complex_concepts_become_labels_and_unknown_words_are_named():
    concept = "striped AND NOT small"
    for sample in generate_samples("train", 0, 40, concepts=[concept]):
        assert (concept in sample.labels) == any(
            thing["texture"] == "striped" and thing["size"] == "large" for thing in sample.objects
        )
    with pytest.raises(ConfigError, match="metallic"):
        next(generate_samples("train", 0, 1, concepts=["metallic OR ring"]))
