"""Reading captions back: which objects a text mentions, with which attributes, in which relations.

Exact on the grammar of `language.py`, and lenient on a model's own text: a noun phrase is any run of attribute words,
in any order, that ends in an object word; words outside the grammar are passed over. A relation is stated where nothing
but its words ("is", "to the", articles) stands between two noun phrases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from cmma.testbed.language import PLURALS, RELATIONS
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES

OBJECT_WORDS: dict[str, str] = {shape: shape for shape in SHAPES} | {plural: shape for shape, plural in PLURALS.items()}
"""Every word that names an object → the object's category."""

_ATTRIBUTE = {
    word: field for field, words in (("color", COLORS), ("size", SIZES), ("texture", TEXTURES)) for word in words
}
_PHRASE = re.compile(
    rf"\b(?P<attributes>(?:(?:{'|'.join(_ATTRIBUTE)})[\s,]+)*)(?P<object>{'|'.join(OBJECT_WORDS)})\b"
)
_BETWEEN = re.compile(rf"\s+(?:(?:is|are)\s+)?(?:to\s+the\s+)?({'|'.join(RELATIONS)})\s+(?:(?:a|an|the)\s+)?")


@dataclass(frozen=True)
class Mention:
    """One noun phrase: the category of its object word and the attributes said of it (None = not said)."""

    shape: str
    color: str | None = None
    size: str | None = None
    texture: str | None = None

    @property
    def stated(self) -> dict[str, str]:
        """What is said: attribute → word, always with "shape"."""
        return {name: word for name, word in vars(self).items() if word is not None}


@dataclass(frozen=True)
class RelationMention:
    """One statement "<subject> is <relation> <other>"."""

    subject: Mention
    relation: str
    other: Mention


def parse_caption(text: str) -> list[Mention]:
    """Every mention of an object in the order of the text; an object named twice is mentioned twice."""
    return [_mention(phrase) for phrase in _PHRASE.finditer(text.lower())]


def parse_relations(text: str) -> list[RelationMention]:
    """Every statement of a relation between two mentioned objects."""
    text = text.lower()
    return [
        RelationMention(_mention(subject), between[1], _mention(other))
        for subject, other in pairwise(_PHRASE.finditer(text))
        if (between := _BETWEEN.fullmatch(text, subject.end(), other.start()))
    ]


def _mention(phrase: re.Match[str]) -> Mention:
    stated = {_ATTRIBUTE[word]: word for word in re.findall(r"\w+", phrase["attributes"])}
    return Mention(OBJECT_WORDS[phrase["object"]], **stated)
