"""Reading captions back: which objects a text mentions, with which attributes, in which relations.

Exact on the grammar of `language.py`, and lenient on a model's own text: a noun phrase is any run of attribute words
that ends in an object word, in any order, with anything between phrases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cmma.testbed.language import PLURALS, RELATIONS
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES

OBJECT_WORDS: dict[str, str] = {shape: shape for shape in SHAPES} | {plural: shape for shape, plural in PLURALS.items()}
"""CHAIR vocabulary of the shapes world: every word that names an object → the object's category."""

_ATTRIBUTE = {
    word: field for field, words in (("color", COLORS), ("size", SIZES), ("texture", TEXTURES)) for word in words
}
_WORD = re.compile(r"[a-z]+|[^\sa-z]")


@dataclass(frozen=True)
class Mention:
    """One noun phrase: the category of its object word and the attributes said of it (None = not said)."""

    shape: str
    color: str | None = None
    size: str | None = None
    texture: str | None = None


@dataclass(frozen=True)
class RelationMention:
    """One statement "<subject> is <relation> <other>"."""

    subject: Mention
    relation: str
    other: Mention


def parse_caption(text: str) -> list[Mention]:
    """Every mention of an object in the order of the text; an object named twice is mentioned twice."""
    return [item for item in _items(text) if isinstance(item, Mention)]


def parse_relations(text: str) -> list[RelationMention]:
    """Every statement of a relation between two mentioned objects."""
    items = _items(text)
    return [
        RelationMention(subject, relation, other)
        for subject, relation, other in zip(items, items[1:], items[2:], strict=False)
        if isinstance(subject, Mention) and relation in RELATIONS and isinstance(other, Mention)
    ]


def _items(text: str) -> list[Mention | str]:
    """Mentions and relation words in order; any other mark that ends a statement stays as "."."""
    words = _WORD.findall(text.lower())
    items: list[Mention | str] = []
    attributes: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        pair = f"{word} {following}"
        if word in OBJECT_WORDS:
            items.append(Mention(OBJECT_WORDS[word], **attributes))
            attributes = {}
        elif word in _ATTRIBUTE:
            attributes[_ATTRIBUTE[word]] = word
        elif pair in RELATIONS or word in RELATIONS:
            items.append(pair if pair in RELATIONS else word)
        elif word in ".,?":
            items.append(".")
            attributes = {}
    return items
