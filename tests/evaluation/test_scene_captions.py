"""Object, attribute and relation hallucination against scenes whose truth is known."""

from __future__ import annotations

import pytest
from PIL import Image

from cmma.data.samples import Sample
from cmma.evaluation.scene_captions import scene_hallucination, score_scene_caption, visible_shapes
from cmma.testbed.generate import generate_samples

SCENE = Sample(
    "scene",
    Image.new("RGB", (2, 2)),
    "",
    {
        "objects": [
            {"shape": "circle", "color": "red", "size": "large", "texture": "striped", "visible": True},
            {"shape": "ring", "color": "blue", "size": "small", "texture": "solid", "visible": True},
            {"shape": "star", "color": "yellow", "size": "small", "texture": "solid", "visible": False},
        ],
        "relations": [[0, "left of", 1], [1, "right of", 0], [0, "above", 2], [2, "below", 0]],
    },
)  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "absent", "wrong_attributes", "wrong_relations"),
    [
        ("a large striped red circle, a small solid blue ring.", 0, 0, 0),
        ("a small yellow star and a square", 2, 0, 0),  # the star is in the scene but cannot be seen
        ("a green circle", 0, 1, 0),
        ("a small striped red circle", 0, 1, 0),  # each word but one is right: one wrong mention
        ("the red circle is right of the blue ring", 0, 0, 1),
        ("the circle is to the left of a ring", 0, 0, 0),
        ("the green circle is right of the blue ring", 0, 1, 0),  # no such object: not also a wrong relation
        ("the blue ring is above the yellow star", 1, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_each_wrong_word_is_counted_once(caption, absent, wrong_attributes, wrong_relations):
    counts = score_scene_caption(caption, SCENE)
    found = (counts.absent_objects, counts.wrong_attributes, counts.wrong_relations)
    assert found == (absent, wrong_attributes, wrong_relations)


def test_denominators_and_described_share():
    counts = score_scene_caption("a circle, a red ring, a star. the circle is above the star", SCENE)
    assert (counts.mentions, counts.attributed, counts.relations) == (5, 1, 0)
    assert (counts.visible, counts.described) == (2, 1)


def test_true_captions_of_generated_scenes_hallucinate_nothing():
    """The captions come from the grammar, which shares no code with the parser."""
    samples = list(generate_samples("balanced", 0, 200, seed=3))
    result = scene_hallucination([sample.caption for sample in samples], samples, n_resamples=200)
    assert (result.objects.value, result.attributes.value, result.relations.value) == (0, 0, 0)
    assert result.described.value == 1
    assert result.n_relations == sum(sample.caption.count(" is ") for sample in samples)
    assert result.n_attributed == result.n_mentions


def test_captions_of_other_scenes_hallucinate():
    samples = list(generate_samples("balanced", 0, 100, seed=3))
    captions = [sample.caption for sample in samples[1:] + samples[:1]]
    result = scene_hallucination(captions, samples, n_resamples=200)
    assert result.objects.low > 0.2
    assert result.attributes.low > 0.5


def test_invisible_objects_are_not_truth():
    assert visible_shapes(SCENE) == ["circle", "ring"]


def test_what_is_said_of_absent_objects_is_counted_apart():
    caption = "a red circle, a small yellow star. the red circle is left of a blue ring. the circle is above the star."
    counts = score_scene_caption(caption, SCENE)
    assert (counts.phrases, counts.false_phrases) == (4, 1)
    assert (counts.statements, counts.false_statements) == (2, 1)
    assert (counts.relations, counts.wrong_relations) == (1, 0)
