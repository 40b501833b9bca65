"""Presence questions as POPE asks them."""

from __future__ import annotations

import random

import pytest

from cmma.errors import ConfigError
from cmma.evaluation.presence import WAYS, occurrence, presence_questions

IMAGES = [("dog", "cat"), ("dog", "cat"), ("dog", "bird"), ("dog",), ("fish",), ("fish",), ("fish",), ("bird", "bird")]


def test_objects_are_counted_once_per_image():
    known = occurrence(IMAGES)
    assert known.alone == {"dog": 4, "cat": 2, "bird": 2, "fish": 3}
    assert known.together["dog"] == {"cat": 2, "bird": 1}


@pytest.mark.parametrize(("way", "lacking"), [("popular", ["fish", "bird"]), ("adversarial", ["bird", "fish"])])
def test_absent_objects_are_the_frequent_or_the_accompanying_ones(way, lacking):
    asked = presence_questions(["dog", "cat"], occurrence(IMAGES), way, random.Random(0))
    assert {each.question for each in asked if each.answer == "yes"} == {"is there a dog?", "is there a cat?"}
    assert [each.question for each in asked if each.answer == "no"] == [f"is there a {name}?" for name in lacking]


@pytest.mark.parametrize("way", WAYS)
def test_as_many_objects_are_absent_as_are_there(way):
    for objects in (["dog"], ["dog", "cat"], ["dog", "cat", "bird"], []):
        asked = presence_questions(objects, occurrence(IMAGES), way, random.Random(1))
        there, lacking = ([each for each in asked if each.answer == answer] for answer in ("yes", "no"))
        assert len(there) == len(lacking) == min(len(objects), 4 - len(objects))
        assert not any(each.question.split()[-1].rstrip("?") in objects for each in lacking)


def test_another_way_is_refused():
    with pytest.raises(ConfigError, match="adversarial"):
        presence_questions(["dog"], occurrence(IMAGES), "rare", random.Random(0))
