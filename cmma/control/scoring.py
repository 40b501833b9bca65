"""What changed between two results: the intended factor, and everything else that a parser can see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from cmma.control.trials import ATTRIBUTES, Trial
from cmma.testbed.captions import Mention, parse_caption, parse_relations
from cmma.testbed.parser import ParsedScene

POSITION = "cell"
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Facts:
    """What a result shows or says.

    Attributes:
        objects: factor → value of each object (None: cannot be told). Every object has the same factors: the four
            attributes, and in an image the cell of the layout.
        relations: (index, relation, index): all that hold in an image, those that a text states (and their inverse).
    """

    objects: tuple[Mapping[str, Any], ...]
    relations: frozenset[tuple[int, str, int]]


@dataclass(frozen=True)
class Change:
    """One trial's outcome, in counts of factors.

    Attributes:
        success: the intended change is there.
        unintended: other changes: of a factor of an object, or of an object's presence. moved: those of positions.
        kept, others: of the factors that should have stayed, how many did. An object that appears is one that did not.
    """

    success: bool
    unintended: int
    moved: int
    kept: int
    others: int


def facts_of_image(scene: ParsedScene) -> Facts:
    """What the scene parser sees."""
    objects = tuple({name: getattr(thing, name) for name in (*ATTRIBUTES, POSITION)} for thing in scene.objects)
    return Facts(objects, frozenset(scene.relations))


def facts_of_caption(text: str) -> Facts:
    """What a caption says: its noun phrases before the statements of relations, and these."""
    stated = parse_relations(text)
    mentions = parse_caption(text)
    objects = [_attributes(mention) for mention in mentions[: len(mentions) - 2 * len(stated)]]
    relations: set[tuple[int, str, int]] = set()
    for statement in stated:
        subject, other = (_index_of(side, objects) for side in (statement.subject, statement.other))
        if subject is not None and other is not None:
            relations |= {(subject, statement.relation, other), (other, _INVERSE[statement.relation], subject)}
    return Facts(tuple(objects), frozenset(relations))


def shows(facts: Facts, trial: Trial) -> bool:
    """Whether a result is what the trial starts from: every object of the scene with all its attributes, no other.

    A trial of `places` also needs the relation that is to be turned round.
    """
    found = _places_in(facts, trial)
    if found is None or len(facts.objects) != len(found):
        return False
    return trial.factor != "places" or (found[0], trial.target, found[1]) in facts.relations


def judge(before: Facts, after: Facts, trial: Trial) -> Change:
    """Compare two results of a trial; `before` must show its scene (`shows`).

    Objects of the two are matched so that most factors agree. As in `cmma.testbed.pairs.FACTORS`, presence is a factor:
    an object that vanished or appeared is one change (of a vanished one nothing is kept). Where two objects are to
    change places, their positions may change.
    """
    found = _places_in(before, trial)
    assert found is not None, "the result before does not show the trial's scene"
    targets = [found[index] for index in trial.objects]
    swaps = trial.factor == "places"
    factors = tuple(before.objects[0])
    # Who is who is told by what should stay: of objects that change places, by their attributes.
    match = _match(before.objects, after.objects, ATTRIBUTES if swaps else factors)
    there = [match.get(index) for index in targets]
    if swaps:
        success = (there[1], trial.target, there[0]) in after.relations
    else:
        success = there[0] is not None and after.objects[there[0]][trial.factor] == trial.target

    unintended = moved = kept = others = 0
    for index, thing in enumerate(before.objects):
        now = after.objects[match[index]] if index in match else None
        for factor in factors:
            same = now is not None and now[factor] == thing[factor]
            if index in targets and factor == (POSITION if swaps else trial.factor):
                unintended += not swaps and not success and not same and now is not None  # a third value
                continue
            others, kept = others + 1, kept + same
            unintended += now is not None and not same
            moved += now is not None and not same and factor == POSITION
    vanished, appeared = len(before.objects) - len(match), len(after.objects) - len(match)
    return Change(success, unintended + vanished + appeared, moved, kept, others + appeared)


def _attributes(mention: Mention) -> dict[str, str | None]:
    return {name: getattr(mention, name) for name in ATTRIBUTES}


def _index_of(mention: Mention, objects: Sequence[Mapping[str, Any]]) -> int | None:
    fitting = [
        index for index, thing in enumerate(objects)
        if all(thing[name] == value for name, value in mention.stated.items())
    ]  # fmt: skip
    return fitting[0] if fitting else None


def _places_in(facts: Facts, trial: Trial) -> list[int] | None:
    """Where each object of the trial's scene is among the facts; None if one is not there. Names are unique."""
    seen = [tuple(thing[name] for name in ATTRIBUTES) for thing in facts.objects]
    wanted = [tuple(thing[name] for name in ATTRIBUTES) for thing in trial.sample.objects]
    return [seen.index(each) for each in wanted] if all(each in seen for each in wanted) else None


def _match(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], factors: Sequence[str]
) -> dict[int, int]:
    if not before or not after:
        return {}
    agreement = np.array([[sum(a[f] == b[f] for f in factors) for a in after] for b in before])
    rows, columns = linear_sum_assignment(agreement, maximize=True)
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))
