"""Images from prompts: what is right by construction counts as right, and a real pipeline goes through."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.evaluation.prompted_images import make_images, prompt_accuracy
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples
from cmma.testbed.parser import ParsedObject, ParsedScene
from cmma.testbed.prompted import prompt_counts


def thing(shape: str, color: str, cell: int, size: str = "large", texture: str = "solid") -> ParsedObject:
    return ParsedObject(shape, color, size, texture, cell, 0.0, 0.0, 1.0)


def test_counts_worked_by_hand():
    prompt = (
        "a large solid red circle, a small striped blue ring. the red circle is left of the blue ring. "
        "the blue ring is below the red circle."
    )
    right = ParsedScene((thing("circle", "red", 0), thing("ring", "blue", 5, "small", "striped")))
    expected = {"object": (2, 2), "size": (2, 2), "texture": (2, 2), "count": (1, 1), "image": (1, 1),
                "relation": (2, 2), "relation_given_objects": (2, 2)}
    assert prompt_counts(prompt, right) == expected
    other = ParsedScene((
        thing("ring", "blue", 0), thing("circle", "red", 1, texture="dotted"), thing("star", "red", 2),
    ))  # fmt: skip
    assert prompt_counts(prompt, other) == {
        "object": (2, 2), "size": (1, 2), "texture": (0, 2), "count": (0, 1), "image": (0, 1),
        "relation": (0, 2), "relation_given_objects": (0, 2),
    }  # fmt: skip
    alone = ParsedScene((thing("circle", "red", 0),))
    assert prompt_counts(prompt, alone)["relation"] == (0, 2)
    assert prompt_counts(prompt, alone)["relation_given_objects"] == (0, 0)
    assert prompt_counts("a circle.", alone)["image"] == (1, 1)


def test_the_samples_own_images_score_one_and_shuffled_ones_near_chance():
    samples = list(generate_samples("balanced", 0, 60, 1000, questions_per_image=0))
    prompts, images = [s.caption for s in samples], [s.image for s in samples]
    assert all(interval.value == 1 for interval in prompt_accuracy(prompts, images, 100).values())
    assert prompt_accuracy(prompts, images[1:] + images[:1], 100)["object"].value < 0.2


def test_images_belong_to_the_sample_and_not_to_its_batch():
    spec = ModelSpec("tiny", "stable_diffusion", "random", "", architecture="stable-diffusion-tiny", n_layers=4)
    model, samples = load_model(spec), list(generate_samples("balanced", 0, 3, 1000, questions_per_image=0))
    together = make_images(model, samples, steps=2, guidance=2.0)
    alone = make_images(model, samples[2:], steps=2, guidance=2.0)[0]
    difference = np.abs(np.asarray(together[2], dtype=int) - np.asarray(alone, dtype=int))
    assert difference.max() <= 1
    assert np.asarray(alone).std() == pytest.approx(np.asarray(together[2]).std(), abs=1)
