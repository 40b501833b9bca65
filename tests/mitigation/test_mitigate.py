"""From captions to a table: what is counted, compared, chosen and kept apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cmma.causal.positions import object_patches
from cmma.errors import ConfigError, DataError
from cmma.mitigation.calibration import Calibration
from cmma.mitigation.cause import patch_activations, trigger_table
from cmma.mitigation.comparison import change, compare, pooled, value
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.examination import caption_counts, examination, examine
from cmma.mitigation.mitigate import mitigate
from cmma.mitigation.show import figures, summary
from cmma.mitigation.steering import UNSTEERED, Steering, feature_steering
from cmma.testbed.generate import generate_samples
from cmma.testbed.world import TRIGGER

LAYER = 1


def columns(wrong, said):
    return {"absent_objects": np.array(wrong, float), "mentions": np.array(said, float)}


def test_a_rate_that_halves_changes_by_minus_fifty_percent():
    before, after = columns([2, 0, 2, 4], [4, 4, 4, 4]), columns([1, 0, 1, 2], [4, 4, 4, 4])
    found = change(before, after, "object", n_resamples=500)
    assert found.value == pytest.approx(-50)
    assert np.isnan(change(columns([0, 0, 0, 0], [4, 4, 4, 4]), after, "object").value)


def test_a_change_is_paired_over_images():
    """The same images fall by the same factor: the change is certain, though the rate is not."""
    rng = np.random.default_rng(0)
    wrong = 2.0 * rng.integers(1, 5, 40)
    found = change(columns(wrong, np.full(40, 10)), columns(wrong / 2, np.full(40, 10)), "object", n_resamples=500)
    assert found.value == pytest.approx(-50)
    assert not found.high - found.low > 1e-9


def test_draws_of_a_control_are_pooled_by_image():
    both = pooled([columns([1, 0], [2, 2]), columns([0, 0], [2, 4])])
    assert both["absent_objects"].tolist() == [1, 0]
    assert value(both, "object") == 1 / 10


def test_counts_of_captions_are_worked_by_hand(biased):
    sample = next(each for each in biased if len(each.objects) == 1)
    ring = sample.objects[0]
    caption = f"a {ring['size']} blue ring, a small red star. the blue ring is above the red star."
    counts = caption_counts([sample], [caption], doubtful={"ring", "star"})
    found = {name: int(values[0]) for name, values in counts.items()}
    assert (found["mentions"], found["absent_objects"], found["hallucinating"]) == (4, 2, 1)
    assert (found["phrases"], found["false_phrases"]) == (4, 2)
    assert (found["statements"], found["false_statements"], found["relations"]) == (1, 1, 0)
    assert (found["recalled"], found["objects"], found["described"], found["visible"]) == (1, 1, 1, 1)
    assert (found["claims"], found["false_claims"]) == (4 + 2, 2)
    assert (found["doubtful_recalled"], found["doubtful_objects"]) == (1, 1)


def test_true_captions_make_no_false_claim(plain):
    counts = caption_counts(plain, [sample.caption for sample in plain])
    for name in ("absent_objects", "false_phrases", "false_statements", "false_claims"):
        assert counts[name].sum() == 0
    assert counts["statements"].sum() == sum(sample.caption.count(" is ") for sample in plain)


def test_the_strongest_that_is_allowed_is_chosen(toy, biased, plain, small):
    exams = [examination(name, samples[:2], 2) for name, samples in (("counter", biased), ("balanced", plain))]
    clean = [examine(toy, exam, UNSTEERED, 0.0, small) for exam in exams]
    calibration = Calibration(toy, exams, clean, small)
    nothing = calibration.choose(Steering("nothing", strengths=(1.0, 2.0)))
    assert (nothing.strength, nothing.rate) == (1.0, calibration.clean_rate)  # no worse, so allowed
    silence = Steering("silence", prompt="how many objects are there?")  # says nothing false, and nothing at all
    assert calibration.choose(silence).strength == 0
    assert not calibration.choose(silence).tried[0]["allowed"]


def test_finds_chooses_and_tests_on_images_apart(toy, sae, biased, plain, small):
    found = mitigate(toy, sae, LAYER, biased, plain, plain, small)
    conditions = set(found.test["condition"])
    assert "clean" in conditions
    clean = found.test[(found.test["condition"] == "clean") & found.test["value"].notna()]
    assert (clean["before"] == clean["value"]).all()
    keys = {text["key"] for text in found.texts}
    assert keys == {sample.key for sample in (*biased[4:7], *plain[4:7])}
    assert found.not_measured["prompt only"] == "toy_llava does not know the words mention, only, clearly"
    assert found.headline.rate == min(choice.rate for choice in found.choices if choice.steering.name in {
        f"features by {how}" for how in small.selections})
    if found.headline.strength:
        assert {"features", "features, reversed", "random features", "random direction"} <= conditions
    counts = Counter(found.test[found.test["split"] == "counter"]["condition"])
    assert set(counts.values()) == {15}  # every metric under every condition
    assert summary(found, small)["images_held_out"] == [3, 3]
    assert len(figures(found, small)) >= 2


def test_the_trigger_is_looked_for_patch_by_patch(toy, sae, biased, records):
    table = trigger_table(toy, sae, LAYER, biased, [3], sae.W_dec.new_ones(48), n_controls=2, n_resamples=100)
    grid = toy.image_grid(toy.collate(biased[:1]))
    areas = []
    for sample, found_PF in zip(biased, patch_activations(toy, sae, LAYER, biased, [3]), strict=True):
        ring = [i for i, thing in enumerate(sample.objects) if (thing["color"], thing["shape"]) == TRIGGER]
        areas.append(roc_auc_score(object_patches(sample, ring, grid), found_PF[:, 0]))
    assert table["auroc"].item() == pytest.approx(np.mean(areas), abs=1e-6)
    without = [sample for sample in generate_samples("balanced", 0, 6, seed=5) if "blue ring" not in sample.labels]
    assert trigger_table(toy, sae, LAYER, without, [3], sae.W_dec.new_ones(48)).empty


def test_what_cannot_be_mitigated_is_said_in_one_line(toy, tiny_clip, sae, biased, plain, small):
    with pytest.raises(ConfigError, match="writes no captions"):
        mitigate(tiny_clip, sae, LAYER, biased, plain, plain, small)
    unknown = [replace(sample, meta={}) for sample in biased]
    with pytest.raises(DataError, match="dataset=shapes"):
        mitigate(toy, sae, LAYER, unknown, plain, plain, small)
    with pytest.raises(ConfigError, match="two splits"):
        MitigationConfig(split="balanced")
    with pytest.raises(ConfigError, match="in the prompt"):
        MitigationConfig(tokens="visual", phase="decode")


def test_compared_rows_hold_the_test_over_images():
    counts = columns([2, 2, 2, 2, 2, 2, 2, 2], [4] * 8), columns([0, 0, 0, 0, 0, 0, 0, 1], [4] * 8)
    (row,) = compare("ours", "counter", *counts, n_resamples=200)
    assert row["change"] == pytest.approx(100 * (1 / 16 - 1))
    assert row["p"] == pytest.approx(2 / 2**8, abs=0.005)  # every image falls: one of the two extreme flips


def test_features_are_added_while_they_lower_the_rate(toy, sae, biased, plain, small):
    exams = [examination(name, samples[:3], 2) for name, samples in (("counter", biased), ("balanced", plain))]
    clean = [examine(toy, exam, UNSTEERED, 0.0, small) for exam in exams]
    calibration = Calibration(toy, exams, clean, small)
    rates = {}
    for feature in (0, 1, 2):
        steering = feature_steering(toy, sae, LAYER, [feature], small, "")
        columns = examine(toy, replace(exams[0], questions=[]), steering, 1.0, small).columns
        loss = max(value(clean[0].columns, name) - value(columns, name) for name in ("recall", "described"))
        rates[feature] = value(columns, "object") if loss <= small.max_recall_loss else np.inf
    best = min(rates, key=rates.get)
    found = calibration.forward(sae, LAYER, [0, 1, 2])
    assert found[:1] == ((best,) if rates[best] < calibration.clean_rate else ())
    assert len(found) <= small.max_features
