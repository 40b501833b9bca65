"""The scene parser against the renderer's own truth."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cmma.errors import DataError
from cmma.testbed.generate import generate_samples
from cmma.testbed.measure_parser import parser_accuracy
from cmma.testbed.parser import parse_image, parse_images
from cmma.testbed.render import PALETTE, render, signed_distance
from cmma.testbed.scenes import CANVAS, RADII
from cmma.testbed.world import sample_scenes


@pytest.mark.parametrize(("degradation", "objects"), [("clean", 0.98), ("noise, sd 20", 0.98), ("blur, sd 1", 0.95)])
def test_held_out_scenes_are_read_right(degradation, objects):
    accuracy = parser_accuracy(300, degradation)
    assert accuracy["objects"]["value"] >= objects
    assert accuracy["scenes"]["value"] >= objects - 0.05
    assert accuracy["precision"]["value"] >= 0.98


def test_relations_equal_those_of_the_sample():
    for sample in generate_samples("balanced", 0, 40, 1000, questions_per_image=0):
        parsed = parse_image(sample.image)
        assert [list(relation) for relation in parsed.relations] == sample.meta["relations"]
        assert [(thing.row, thing.column) for thing in parsed.objects] == [
            divmod(thing["cell"], 3) for thing in sample.objects
        ]


def test_centres_are_found_within_a_step_of_the_templates():
    scenes = sample_scenes(60, "balanced", 1000)
    errors = [
        (found.x - thing.x, found.y - thing.y)
        for i, parsed in enumerate(parse_images(render(scenes)[0]))
        for found, thing in zip(parsed.objects, scenes.scene(i), strict=True)
    ]
    assert np.abs(errors).max() < 0.6
    assert np.abs(errors).mean() < 0.3


def test_invisible_objects_and_empty_canvases_hold_nothing():
    scenes = sample_scenes(1000, "train", 0)
    hidden = scenes.take(np.flatnonzero((scenes.present & ~scenes.visible).any(axis=1))[:20])
    parsed = parse_images(render(hidden)[0])
    assert [len(p.objects) for p in parsed] == list((hidden.present & hidden.visible).sum(axis=1))
    assert parse_image(np.full((CANVAS, CANVAS, 3), 117, dtype=np.uint8)).objects == ()
    noise = np.random.default_rng(0).normal(117, 20, (10, CANVAS, CANVAS, 3)).astype(np.uint8)
    assert not any(scene.objects for scene in parse_images(noise))


def test_a_colour_halfway_between_two_is_none():
    pixel = np.arange(16) + 0.5 - 8
    inside = signed_distance(1, *np.meshgrid(pixel, pixel), np.asarray(RADII[1])) < 0
    canvas = np.full((CANVAS, CANVAS, 3), 110.0)
    canvas[16:32, 16:32][inside] = PALETTE[[0, 3]].mean(axis=0)  # red and yellow
    (found,) = parse_image(canvas.astype(np.uint8)).objects
    assert (found.shape, found.color, found.size, found.cell) == ("square", None, "large", 4)
    assert found.name is None
    assert found.confidence < 0.9


def test_other_sizes_are_scaled_and_other_arrays_refused():
    image = next(generate_samples("balanced", 3, 4, 1000)).image
    large = image.resize((96, 96), Image.Resampling.NEAREST)
    assert parse_image(large) == parse_image(image)
    with pytest.raises(DataError, match="uint8"):
        parse_images(np.zeros((2, 32, 32, 3), dtype=np.uint8))
