"""The question of a semantic image pair, and its symmetric token replacement.

A pair's question has another answer on the corrupted image than on the clean one. The replacement differs from the
question in one token (two, where a name of two words is replaced) and has another answer *on the clean image*: so the
image may be swapped under a fixed question, or the token under a fixed image (the two corruptions of NOTICE,
Golovanevsky et al. 2024).
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

from cmma.data.samples import Question
from cmma.testbed.language import all_questions
from cmma.testbed.pairs import FACTORS
from cmma.testbed.scenes import Scene
from cmma.testbed.world import pair_factors, sample_scenes

_KINDS = {
    "shape": ("shape", "existence", "count"),
    "color": ("color", "existence", "count"),
    "size": ("size", "existence", "count"),
    "texture": ("texture", "existence", "count"),
    "position": ("relation",),
    "presence": ("existence", "count", "relation"),
}
"""Kinds of question that ask for a factor, most direct first."""


def pair_truth(seed: int, index: int) -> dict[str, Any]:
    """The `pair` entry of sample `index` of the `pairs` split."""
    return {**_pair(seed, index // 2), "role": "corrupt" if index % 2 else "clean"}


@lru_cache(maxsize=1024)
def _pair(seed: int, pair: int) -> dict[str, Any]:
    scenes = sample_scenes(2, "pairs", seed, 2 * pair)
    clean, corrupt = scenes.scene(0), scenes.scene(1)
    factor = FACTORS[int(pair_factors(2 * pair))]
    question, other_answer, replacement = _ask(clean, corrupt, factor, random.Random(f"{seed}/pair/{pair}"))
    return {
        "id": pair,
        "factor": factor,
        "question": question.question,
        "answer": question.answer,
        "other_answer": other_answer,
        "replacement": {"question": replacement.question, "answer": replacement.answer},
    }


def _ask(clean: Scene, corrupt: Scene, factor: str, rng: random.Random) -> tuple[Question, str, Question]:
    """A question of the most direct kind that tells the two scenes apart and has a replacement."""
    for kind in _KINDS[factor]:
        here = _flat(clean, kind)
        there = {q.question: q.answer for q in _flat(corrupt, kind)}
        rng.shuffle(here)
        for question in here:
            other = there.get(question.question)
            if other is None or other.split()[0] == question.answer.split()[0]:
                continue
            swaps = [q for q in here if q.answer.split()[0] != question.answer.split()[0]]
            swaps = [q for q in swaps if _tokens_apart(q.question, question.question) < 3]
            if swaps:
                best = min(swaps, key=lambda q: (_tokens_apart(q.question, question.question), q.answer != other))
                return question, other, best
    raise AssertionError(f"no question tells {clean} and {corrupt} apart by {factor}")


def _flat(scene: Scene, kind: str) -> list[Question]:
    return [question for group in all_questions(scene)[kind].values() for question in group]


def _tokens_apart(text: str, other: str) -> float:
    """In how many places two questions of equal length differ; infinite for unequal lengths."""
    a, b = text.split(), other.split()
    return sum(x != y for x, y in zip(a, b, strict=True)) if len(a) == len(b) else float("inf")
