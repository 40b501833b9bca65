"""Balanced yes/no questions about the presence of objects in images whose objects are known, as POPE asks them.

Li et al. 2023 (arXiv 2305.10355): as many objects that are there as objects that are not, the latter drawn in one of
three ways: `random`, `popular` (the most frequent in the data) and `adversarial` (those that occur most often together
with the objects of the image).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from cmma.checks import one_of
from cmma.data.samples import Question

WAYS = ("random", "popular", "adversarial")
KIND = "presence"


@dataclass(frozen=True)
class Occurrence:
    """How often objects occur in a data set, and how often two of them in one image."""

    alone: Counter[str]
    together: dict[str, Counter[str]]


def occurrence(images: Iterable[Collection[str]]) -> Occurrence:
    """Count over the objects of each image; repetitions within an image do not count."""
    alone: Counter[str] = Counter()
    together: dict[str, Counter[str]] = {}
    for objects in images:
        there = set(objects)
        alone.update(there)
        for each in there:
            together.setdefault(each, Counter()).update(there - {each})
    return Occurrence(alone, together)


def presence_questions(
    objects: Collection[str], known: Occurrence, way: str, rng: random.Random, n: int = 3
) -> list[Question]:
    """Up to `n` objects of one image, and as many that are not there.

    Args:
        objects: what the image shows, by the names that `known` counts.
        way: one of `WAYS`. Ties of frequency are broken by name.

    Raises:
        ConfigError: another way.
    """
    one_of("way", way, WAYS)
    absent = sorted(set(known.alone) - set(objects))
    there = sorted(set(objects))
    there = rng.sample(there, min(n, len(there), len(absent)))
    if way == "random":
        lacking = rng.sample(absent, len(there))
    else:
        beside = sum((known.together.get(each, Counter()) for each in objects), Counter())
        order = known.alone if way == "popular" else beside
        lacking = sorted(absent, key=lambda name: (-order[name], name))[: len(there)]
    answers = [(name, "yes") for name in there] + [(name, "no") for name in lacking]
    return [Question(f"is there a {name}?", answer, KIND) for name, answer in answers]


def object_name(thing: dict[str, Any]) -> str:
    """How questions call an object of a scene: colour and shape."""
    return f"{thing['color']} {thing['shape']}"
