"""Trials: one sample, one object, one factor that is to become another value; and where its words stand in the prompt.

A prompt is the caption of a scene (`cmma.testbed.language.caption`).
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmma.data.samples import Sample
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES

FACTORS = {"shape": "object", "texture": "style", "color": "attribute", "size": "attribute", "places": "composition"}
"""Factor → dimension of Table 2. `places`: the two objects of a scene change places."""

VALUES = {"shape": SHAPES, "texture": TEXTURES, "color": COLORS, "size": SIZES}
ATTRIBUTES = tuple(VALUES)
ROLES = ("size", "texture", "color", "shape", ",", "a", "color'", "shape'", "is", "relation", "of", "the")
"""What a word is to an object: a word of its noun phrase, the mark behind it and the next article; and, where it is
named again (a prime), the words up to the next object. A causal text encoder knows of the object there too."""


@dataclass(frozen=True)
class Trial:
    """One thing to change.

    Attributes:
        sample: its caption is the prompt, its objects are the scene that should be there.
        factor: of `FACTORS`.
        objects: indices of the object that changes; of `places`, of both objects.
        target: value that the factor should take; of `places`, the relation that holds in the caption and should be
            turned round.
    """

    sample: Sample
    factor: str
    objects: tuple[int, ...]
    target: str

    @property
    def dimension(self) -> str:
        return FACTORS[self.factor]

    @property
    def source(self) -> str:
        """Value that the factor has."""
        return self.target if self.factor == "places" else self.sample.objects[self.objects[0]][self.factor]

    @property
    def noise_seed(self) -> int:
        """Of the noise that an image is made from: before and after start from the same."""
        return zlib.crc32(self.sample.key.encode())

    def value_changes(self) -> list[tuple[int, str, str, str]]:
        """(object, attribute, value that it has, value that is wanted), of everything that differs."""
        objects = self.sample.objects
        if self.factor != "places":
            return [(self.objects[0], self.factor, objects[self.objects[0]][self.factor], self.target)]
        return [
            (index, name, objects[index][name], objects[1 - index][name])
            for index in self.objects for name in ATTRIBUTES if objects[0][name] != objects[1][name]
        ]  # fmt: skip

    def changed_objects(self) -> list[dict[str, Any]]:
        """The scene as it should become; objects keep their cells, and exchange what they are to change places."""
        objects = [dict(thing) for thing in self.sample.objects]
        for index, name, _, target in self.value_changes():
            objects[index][name] = target
        return objects

    def changed_prompt(self) -> str:
        """The caption of the scene as it should become."""
        return rewrite(self.sample.caption, self.sample.objects, self.changed_objects())


def draw_trials(samples: Sequence[Sample], factor: str, seed: int) -> list[Trial]:
    """One trial per sample that allows one: a random object gets a random other value.

    The names in the scene stay distinct. `places` takes scenes of two objects.
    """
    rng = random.Random(f"{seed}/{factor}")
    trials = []
    for sample in samples:
        objects = sample.objects
        if factor == "places":
            if len(objects) == 2:
                trials.append(Trial(sample, factor, (0, 1), _stated_relation(sample.caption)))
            continue
        index = rng.randrange(len(objects))
        taken = {_name(thing) for other, thing in enumerate(objects) if other != index}
        free = [
            value for value in VALUES[factor]
            if value != objects[index][factor] and _name({**objects[index], factor: value}) not in taken
        ]  # fmt: skip
        trials.append(Trial(sample, factor, (index,), rng.choice(free)))
    return trials


@dataclass(frozen=True)
class Word:
    """One word of a prompt that is about an object: characters [start, stop), the object's index, the word's role."""

    start: int
    stop: int
    thing: int
    role: str


def words_of(caption: str, objects: Sequence[dict[str, Any]]) -> list[Word]:
    """The words about each object, in the order of the text, with their `ROLES`."""
    words: list[Word] = []
    for thing, found in enumerate(objects):
        phrase = rf"({found['size']}) ({found['texture']}) ({found['color']}) ({found['shape']})([,.])(?: (a)\b)?"
        named = rf"\bthe ({found['color']}) ({found['shape']})(?: (is) (left|right|above|below)(?: (of))? (the))?"
        for pattern, roles in ((phrase, ROLES[:6]), (named, ROLES[6:])):
            for match in re.finditer(pattern, caption):
                spans = [match.span(group) for group in range(1, len(roles) + 1)]
                words += [Word(*span, thing, role) for span, role in zip(spans, roles, strict=True) if span[0] >= 0]
    return sorted(words, key=lambda word: word.start)


def token_span(tokenizer: Any, caption: str, word: Word) -> slice:
    """Positions of a word's tokens in a prompt that begins with one start mark."""
    first, behind = (
        1 + len(tokenizer(caption[:end], add_special_tokens=False)["input_ids"]) for end in (word.start, word.stop)
    )
    return slice(first, behind)


def rewrite(caption: str, objects: Sequence[dict[str, Any]], instead: Sequence[dict[str, Any]]) -> str:
    """The caption with the attribute words of each object replaced by those of `instead`."""
    for word in reversed(words_of(caption, objects)):
        attribute = word.role.removesuffix("'")
        if attribute in ATTRIBUTES:
            caption = caption[: word.start] + instead[word.thing][attribute] + caption[word.stop :]
    return caption


def _stated_relation(caption: str) -> str:
    match = re.search(r"is (left of|above) the", caption)
    assert match is not None, caption  # the grammar states a relation between two objects
    return match[1]


def _name(thing: dict[str, Any]) -> tuple[str, str]:
    return thing["color"], thing["shape"]
