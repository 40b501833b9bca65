"""Captions and questions of the shapes world: one small grammar, always true to the scene.

Everything is lower-case words and the punctuation `, . ?`. A noun phrase is "a large striped red circle"; with the
article and without size and texture ("the red circle") it refers to the only such object.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Protocol

from cmma.data.samples import Question
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES, Scene, SceneObject

NUMBERS = ("zero", "one", "two", "three", "four")
KINDS = ("existence", "negation", "logic", "color", "shape", "size", "texture", "count", "relation")
CAPTION_PROMPT = "describe the image."
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}


class Placed(Protocol):
    """What relations are about: a thing in a cell of the layout."""

    @property
    def row(self) -> int: ...
    @property
    def column(self) -> int: ...


RELATIONS: dict[str, Callable[[Placed, Placed], bool]] = {
    "left of": lambda a, b: a.column < b.column,
    "right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}
"""Relations hold between cells of the layout: strictly smaller or larger column or row."""

CONNECTIVES = ("and", "or")
"""Words of questions that no caption has."""

WORDS = tuple(
    dict.fromkeys(
        (
            *SHAPES, *PLURALS.values(), *COLORS, *SIZES, *TEXTURES, *NUMBERS, "yes", "no", ",", ".", "?",
            "a", "the", "is", "are", "there", "what", "how", "many", "color", "shape", "size", "texture",
            "object", "objects", "of", "left", "right", "above", "below", "describe", "image", *CONNECTIVES,
        )
    )
)  # fmt: skip
"""Every word and mark of captions, questions and answers."""


def noun_phrase(thing: SceneObject) -> str:
    """All that is known of an object, with the indefinite article."""
    return f"a {thing.size} {thing.texture} {thing.color} {thing.shape}"


def relations(scene: Scene) -> list[tuple[int, str, int]]:
    """Every relation that holds in the scene, as (index, relation, index)."""
    return [
        (i, name, j)
        for i, j in permutations(range(len(scene)), 2)
        for name, holds in RELATIONS.items()
        if holds(scene[i], scene[j])
    ]


def caption(scene: Scene) -> str:
    """Every object in reading order, then how the first two, and the last and the first, are placed.

    The first relation is "left of" in a shared row and "above" otherwise; the second, with three or more objects, is
    "right of" in a shared row and "below" otherwise.
    """
    sentences = [", ".join(noun_phrase(thing) for thing in scene) + "."]
    if len(scene) >= 2:
        first, second, last = scene[0], scene[1], scene[-1]
        relation = "left of" if first.row == second.row else "above"
        sentences.append(f"the {first.name} is {relation} the {second.name}.")
        if len(scene) >= 3:
            relation = "right of" if first.row == last.row else "below"
            sentences.append(f"the {last.name} is {relation} the {first.name}.")
    return " ".join(sentences)


def all_questions(scene: Scene) -> dict[str, dict[str, list[Question]]]:
    """Every question of the grammar that has exactly one right answer: kind → group → questions.

    Groups balance a kind: the answer ("yes", "no", a number), or "what" for open relations.
    """
    asked: dict[str, dict[str, list[Question]]] = {kind: {} for kind in KINDS}
    for kind, group, text, answer in _enumerate(scene):
        asked[kind].setdefault(group, []).append(Question(text, answer, kind))
    return asked


def questions(
    scene: Scene, rng: random.Random, n: int, kind_weights: Mapping[str, float] | None = None
) -> list[Question]:
    """`n` distinct questions (fewer if the scene has no more): kind, then group, then question.

    Each is chosen uniformly, kinds in proportion to `kind_weights` where given.
    """
    asked = {kind: list(groups.values()) for kind, groups in all_questions(scene).items() if groups}
    chosen: dict[str, Question] = {}
    available = sum(len(group) for groups in asked.values() for group in groups)
    while len(chosen) < min(n, available):
        kinds = list(asked)
        kind = rng.choices(kinds, [kind_weights[k] for k in kinds])[0] if kind_weights else rng.choice(kinds)
        question = rng.choice(rng.choice(asked[kind]))
        chosen.setdefault(question.question, question)
    return list(chosen.values())


def _enumerate(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    yield from _existence(scene)
    yield from _negation(scene)
    yield from _logic(scene)
    yield from _attributes(scene)
    yield from _counts(scene)
    yield from _relations(scene)


def _existence(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    shapes = {thing.shape for thing in scene}
    for shape in SHAPES:
        answer = "yes" if shape in shapes else "no"
        yield "existence", answer, f"is there a {shape}?", answer
    for words, attribute in ((COLORS, "color"), (SIZES, "size"), (TEXTURES, "texture")):
        present = {(getattr(thing, attribute), thing.shape) for thing in scene}
        for word in words:
            for shape in SHAPES:
                answer = "yes" if (word, shape) in present else "no"
                # A "no" for a shape that is there in another guise is the harder question: a group of its own.
                group = "near no" if answer == "no" and shape in shapes else f"{answer} with {attribute}"
                yield "existence", group, f"is there a {word} {shape}?", answer


def _negation(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    """Existence questions with "no": the same words but one, the opposite answer."""
    for _, group, text, answer in _existence(scene):
        opposite = "no" if answer == "yes" else "yes"
        yield "negation", group, text.replace("is there a ", "is there no "), opposite


def _logic(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    """AND and OR of two shapes; with exactly one of them there, the two connectives have opposite answers."""
    shapes = {thing.shape for thing in scene}
    for a, b in permutations(SHAPES, 2):
        present = (a in shapes) + (b in shapes)
        for word, needed in (("and", 2), ("or", 1)):
            yield "logic", f"{word} {present}", f"is there a {a} {word} a {b}?", "yes" if present >= needed else "no"


def _attributes(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    for thing in scene:
        yield "size", thing.size, f"what size is the {thing.name}?", thing.size
        yield "texture", thing.texture, f"what texture is the {thing.name}?", thing.texture
        same_shape = [other for other in scene if other.shape == thing.shape]
        same_color = [other for other in scene if other.color == thing.color]
        for asked, noun, rivals in (("color", thing.shape, same_shape), ("shape", f"{thing.color} object", same_color)):
            answer = getattr(thing, asked)
            if len(rivals) == 1:
                yield asked, "alone", f"what {asked} is the {noun}?", answer
            for attribute in ("size", "texture"):
                word = getattr(thing, attribute)
                if [getattr(other, attribute) for other in rivals].count(word) == 1:
                    yield asked, attribute, f"what {asked} is the {word} {noun}?", answer


def _counts(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    number = NUMBERS[len(scene)]
    yield "count", "all", "how many objects are there?", number
    for shape in SHAPES:
        number = NUMBERS[sum(thing.shape == shape for thing in scene)]
        yield "count", number, f"how many {PLURALS[shape]} are there?", number
    for words, attribute in ((COLORS, "color"), (SIZES, "size"), (TEXTURES, "texture")):
        for word in words:
            number = NUMBERS[sum(getattr(thing, attribute) == word for thing in scene)]
            yield "count", number, f"how many {word} objects are there?", number


def _relations(scene: Scene) -> Iterator[tuple[str, str, str, str]]:
    for name, holds in RELATIONS.items():
        for thing in scene:
            subjects = [other for other in scene if other is not thing and holds(other, thing)]
            if len(subjects) == 1:
                yield "relation", "what", f"what is {name} the {thing.name}?", subjects[0].name
            for other in scene:
                if other is not thing:
                    answer = "yes" if holds(other, thing) else "no"
                    yield "relation", answer, f"is the {other.name} {name} the {thing.name}?", answer
