"""Which objects of an image a concept names: attribute words, and complex concepts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def named_objects(concept: str, objects: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the objects that a concept is true of.

    Args:
        concept: attribute words, all of which must be true of the object ("red", "red ring"), or such groups joined by
            AND, OR and NOT in capitals ("red AND NOT ring", "striped OR star"). AND binds more tightly than OR.
        objects: as in a sample's `meta["objects"]`; any of an object's values counts as its attribute.
    """
    terms = [part.split(" AND ") for part in concept.split(" OR ")]
    return [
        index
        for index, thing in enumerate(objects)
        for values in [{str(value).lower() for value in thing.values()}]
        if any(all(_holds(literal, values) for literal in term) for term in terms)
    ]


def concept_words(concept: str) -> list[str]:
    """The attribute words of a concept, in lower case."""
    return [word.lower() for word in concept.split() if word not in ("AND", "OR", "NOT")]


def _holds(literal: str, values: set[str]) -> bool:
    words = literal.strip().removeprefix("NOT ").lower().split()
    return all(word in values for word in words) != literal.strip().startswith("NOT ")
