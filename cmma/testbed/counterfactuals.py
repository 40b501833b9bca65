"""Counterfactual questions: one image, two questions that differ in one constraint and have different answers.

Each set isolates one thing that a model must read from the question (symmetric token replacement; Golovanevsky et al.
2024). The two questions have the same number of words, and their answers differ in the first word.

- `relation`, `referent`: the two constraints of a relation question (after Basu et al. 2024), one replaced while the
  other stays: "what is left of the red circle?" against "what is right of …", and "is the blue star left of the red
  circle?" against "… of the green ring?" ("what is left of …" names the same object for every referent that has one);
- `count`: the counted word;
- `negation`: "is there a ring?" against "is there no ring?";
- `logic`: "and" against "or" between two shapes of which exactly one is there.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import permutations
from typing import Any

from cmma.data.samples import Question
from cmma.testbed.language import RELATIONS, all_questions
from cmma.testbed.scenes import Scene

SETS = ("relation", "referent", "count", "negation", "logic")
_RELATION = re.compile(
    rf"(?P<subject>what is|is the .+) (?P<relation>{'|'.join(RELATIONS)}) the (?P<referent>.+)\?"
)


def counterfactuals(scene: Scene, rng: random.Random) -> dict[str, dict[str, Any]]:
    """One pair of questions per set, as far as the scene has any.

    Returns:
        Set name → `{"question", "answer", "replacement": {"question", "answer"}}`.
    """
    found = defaultdict(list)
    for name, question, instead in _enumerate(scene):
        if question.answer.split()[0] != instead.answer.split()[0]:
            found[name].append((question, instead))
    chosen = {name: rng.choice(found[name]) for name in SETS if found[name]}
    return {
        name: {
            "question": question.question, "answer": question.answer,
            "replacement": {"question": instead.question, "answer": instead.answer},
        }
        for name, (question, instead) in chosen.items()
    }  # fmt: skip


def _enumerate(scene: Scene) -> Iterator[tuple[str, Question, Question]]:
    asked = {
        kind: [question for group in groups.values() for question in group]
        for kind, groups in all_questions(scene).items()
    }
    related = [(question, _RELATION.fullmatch(question.question)) for question in asked["relation"]]
    for (a, said), (b, instead) in permutations(related, 2):
        if said is None or instead is None or said["subject"] != instead["subject"]:
            continue
        if said["subject"] != "what is" and said["relation"] == instead["relation"]:
            yield "referent", a, b
        if said["subject"] == "what is" and said["referent"] == instead["referent"] and _equal_length(a, b):
            yield "relation", a, b
    for a, b in permutations(asked["count"], 2):
        if _equal_length(a, b):
            yield "count", a, b
    negated = {question.question: question for question in asked["negation"]}
    logical = {question.question: question for question in asked["logic"]}
    for question in asked["existence"]:
        yield "negation", question, negated[question.question.replace(" a ", " no ", 1)]
    for text, question in logical.items():
        if " and " in text:
            yield "logic", question, logical[text.replace(" and ", " or ")]


def _equal_length(a: Question, b: Question) -> bool:
    return len(a.question.split()) == len(b.question.split())
