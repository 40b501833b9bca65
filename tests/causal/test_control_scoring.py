"""Success, precision and preservation, worked by hand on parsed scenes and captions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cmma.control.scoring import Change, facts_of_caption, facts_of_image, judge, shows
from cmma.control.table import table_two
from cmma.control.trials import ATTRIBUTES, FACTORS, ROLES, Trial, draw_trials, words_of
from cmma.testbed.generate import generate_samples
from cmma.testbed.language import caption
from cmma.testbed.parser import parse_image, parse_images
from cmma.testbed.render import render
from cmma.testbed.scenes import scenes_of

SAMPLES = [sample for sample in generate_samples("balanced", 0, 60) if all(o["visible"] for o in sample.objects)]
TWO = [sample for sample in SAMPLES if len(sample.objects) == 2]


def image_of(objects, seed=1):
    return facts_of_image(parse_image(render(scenes_of([objects], [seed]))[0][0]))


def test_scenes_come_back_from_their_objects():
    """Rendered again with another background, the parser reads the same scenes."""
    images, _ = render(scenes_of([sample.objects for sample in SAMPLES], range(len(SAMPLES))))
    for sample, again, first in zip(
        SAMPLES, parse_images(images), parse_images([s.image for s in SAMPLES]), strict=True
    ):
        assert facts_of_image(again) == facts_of_image(first)
        assert shows(facts_of_image(again), Trial(sample, "shape", (0,), ""))


@pytest.mark.parametrize("factor", FACTORS)
def test_a_scene_changed_as_wanted_is_a_success_without_side_effects(factor):
    for trial in draw_trials(SAMPLES, factor, seed=0):
        before, after = (image_of(o) for o in (trial.sample.objects, trial.changed_objects()))
        others = 5 * len(trial.sample.objects) - (2 if factor == "places" else 1)
        assert judge(before, after, trial) == Change(True, 0, 0, others, others)
        assert judge(before, before, trial) == Change(False, 0, 0, others, others)
        said = facts_of_caption(trial.changed_prompt())
        assert judge(facts_of_caption(trial.sample.caption), said, trial).success
        assert judge(facts_of_caption(trial.sample.caption), said, trial).unintended == 0


def test_side_effects_are_counted():
    sample = TWO[0]
    trial = next(trial for trial in draw_trials(TWO, "color", 0) if trial.sample is sample)
    hit, other = trial.objects[0], 1 - trial.objects[0]
    before, wanted = image_of(sample.objects), trial.changed_objects()
    free = next(cell for cell in range(9) if cell not in {o["cell"] for o in sample.objects})
    step = {"cell": free, "x": free % 3 * 16 + 8.0, "y": free // 3 * 16 + 8.0}

    def judged(objects):
        return judge(before, image_of(objects), trial)

    moved = [dict(o) for o in wanted]
    moved[other] |= step
    assert judged(moved) == Change(True, 1, 1, 8, 9)
    assert judged([wanted[hit]]) == Change(True, 1, 0, 4, 9)  # the other one vanished: one change, five factors lost
    appeared = [*wanted, {**wanted[other], **step, "shape": "cross", "color": "cyan"}]
    assert judged(appeared) == Change(True, 1, 0, 9, 10)
    third = next(c for c in ("red", "green", "blue") if c not in (trial.source, trial.target))
    wrong = [dict(o) for o in sample.objects]
    wrong[hit]["color"] = third
    assert judged(wrong) == Change(False, 1, 0, 9, 9)  # a value that nobody wanted


def test_objects_that_change_places_turn_the_relation_round():
    for trial in draw_trials(TWO, "places", 0):
        facts = facts_of_caption(trial.sample.caption)
        assert (0, trial.target, 1) in facts.relations
        assert (1, trial.target, 0) in facts_of_caption(trial.sample.caption.replace(
            trial.target, {"left of": "right of", "above": "below"}[trial.target])).relations
        assert {name: trial.changed_objects()[0][name] for name in ATTRIBUTES} == {
            name: trial.sample.objects[1][name] for name in ATTRIBUTES
        }


def test_every_word_about_an_object_has_its_role():
    sample = TWO[0]
    words = words_of(sample.caption, sample.objects)
    assert [sample.caption[w.start : w.stop] for w in words if w.role in ATTRIBUTES] == [
        sample.objects[thing][name] for thing in (0, 1) for name in ("size", "texture", "color", "shape")
    ]
    assert {w.role for w in words} <= set(ROLES)
    named_again = [word.role for word in words if word.thing == 0][6:]
    assert [role for role in named_again if role != "of"] == ["color'", "shape'", "is", "relation", "the"]
    trial = draw_trials([sample], "shape", 0)[0]
    scene = scenes_of([trial.changed_objects()], [0]).scene(0)
    assert trial.changed_prompt() == caption(scene)  # the grammar's own words for the changed scene


def test_the_table_is_ratios_of_sums_and_overall_the_mean_of_dimensions():
    rows = [  # dimension, factor, success, changed, kept, others
        ("object", "shape", 1, 1, 4, 4), ("object", "shape", 0, 3, 2, 4), ("style", "texture", 1, 2, 4, 4),
    ]
    trials = pd.DataFrame([
        {"key": str(i), "dimension": d, "factor": f, "condition": "features", "draw": 0, "trials": 1, "success": s,
         "changed": c, "changed_in_place": c, "kept": k, "others": o, "target_preferred": 1}
        for i, (d, f, s, c, k, o) in enumerate(rows)
    ])  # fmt: skip
    found = table_two(trials, n_resamples=50)
    value = found[found["condition"] == "features"].set_index(["group", "metric"])["value"]
    assert value["object", "success"] == 0.5
    assert value["object", "precision"] == 0.25
    assert value["overall", "success"] == 0.75
    assert value["overall", "precision"] == np.mean([0.25, 0.5])
    assert value["overall", "preservation"] == np.mean([0.75, 1.0])


def test_trials_are_drawn_from_the_seed():
    assert [t.target for t in draw_trials(SAMPLES, "shape", 3)] == [t.target for t in draw_trials(SAMPLES, "shape", 3)]
    assert isinstance(SAMPLES[0].image, Image.Image)
