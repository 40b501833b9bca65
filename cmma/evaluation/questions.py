"""Answers to short questions: accuracy per kind, and POPE's numbers for yes/no questions.

Yes/no answers are read as POPE's evaluator reads them (Li et al. 2023, arXiv 2305.10355): in the first sentence,
without commas, one of the words `No`, `no`, `not` makes a "no"; everything else is a "yes", also an answer that says
neither. Other answers are right if they begin with the expected words; case, articles and punctuation do not count, and
"2" is "two".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cmma.data.samples import Question
from cmma.errors import DataError
from cmma.evaluation.chair import sum_by_image
from cmma.statistics.bootstrap import Interval, bootstrap_mean, bootstrap_ratio

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {str(number): word for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Answered:
    """A question, what was answered, and the image it is about."""

    image: Hashable
    question: Question
    prediction: str

    @property
    def correct(self) -> bool:
        """Whether the prediction is the answer."""
        return is_correct(self.prediction, self.question.answer)


@dataclass(frozen=True)
class YesNo:
    """Yes/no questions with "yes" as the positive class, as POPE reports them.

    Attributes:
        accuracy, precision, recall, f1: NaN where there is nothing to divide by.
        yes_ratio: share of "yes" among the predictions.
        n: questions. n_yes: those whose answer is "yes".
        n_unclear: predictions that say neither yes nor no; they count as "yes".
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    n: int
    n_yes: int
    n_unclear: int


@dataclass(frozen=True)
class QuestionScores:
    """Accuracy over all questions and per kind, intervals by image; `yes_no` is None without such questions."""

    accuracy: Interval
    by_kind: dict[str, Interval]
    yes_no: YesNo | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        yes_no = None if self.yes_no is None else {
            name: None if math.isnan(value) else value for name, value in asdict(self.yes_no).items()
        }  # fmt: skip
        by_kind = {kind: interval.as_dict() for kind, interval in self.by_kind.items()}
        return {"accuracy": self.accuracy.as_dict(), "by_kind": by_kind, "yes_no": yes_no, "n": self.n}


def parse_yes_no(text: str) -> Literal["yes", "no"]:
    """A free answer as "yes" or "no", by POPE's rule."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def normalise(text: str) -> list[str]:
    """The words of a short answer: first sentence, lower case, no articles, small numbers in words."""
    first = re.split(r"[.!?\n]", text.strip(), maxsplit=1)[0]
    words = re.findall(r"\w+", first.lower())
    return [_DIGITS.get(word, word) for word in words if word not in _ARTICLES]


def is_correct(prediction: str, answer: str) -> bool:
    """Whether a prediction gives the answer; see the module."""
    expected = normalise(answer)
    if expected in (["yes"], ["no"]):
        return parse_yes_no(prediction) == expected[0]
    return normalise(prediction)[: len(expected)] == expected


def score_questions(answered: Sequence[Answered], n_resamples: int = 10_000, seed: int = 0) -> QuestionScores:
    """Accuracy of answers overall and per kind. Raises DataError without any answer."""
    if not answered:
        raise DataError("no questions were answered; the data set has none (meta['questions'])")
    kinds = sorted({each.question.kind for each in answered})

    def accuracy(some: Sequence[Answered]) -> Interval:
        images = [each.image for each in some]
        correct_N = np.array([each.correct for each in some])
        if len(set(images)) == len(images):
            return bootstrap_mean(correct_N, n_resamples=n_resamples, seed=seed)
        right, asked = sum_by_image(np.stack([correct_N.astype(int), np.ones(len(some), int)], axis=1), images).T
        return bootstrap_ratio(right, asked, n_resamples=n_resamples, seed=seed)

    yes_no = [each for each in answered if normalise(each.question.answer) in (["yes"], ["no"])]
    return QuestionScores(
        accuracy=accuracy(answered),
        by_kind={kind: accuracy([each for each in answered if each.question.kind == kind]) for kind in kinds},
        yes_no=score_yes_no([e.prediction for e in yes_no], [e.question.answer for e in yes_no]) if yes_no else None,
        n=len(answered),
    )


def score_yes_no(predictions: Sequence[str], answers: Sequence[str]) -> YesNo:
    """POPE's numbers: free-form predictions against "yes"/"no" answers."""
    truths = [answer.strip().lower() for answer in answers]
    pairs: Counter[tuple[str, str]] = Counter(zip(map(parse_yes_no, predictions), truths, strict=True))
    tp, fp, fn, tn = (pairs[p, t] for p, t in (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")))
    n = len(truths)
    if tp + fp + fn + tn != n:
        raise DataError(f"an answer is neither yes nor no: {next(t for t in truths if t not in ('yes', 'no'))!r}")
    return YesNo(
        accuracy=divide(tp + tn, n),
        precision=divide(tp, tp + fp),
        recall=divide(tp, tp + fn),
        f1=divide(2 * tp, 2 * tp + fp + fn),
        yes_ratio=divide(tp + fp, n),
        n=n,
        n_yes=tp + fn,
        n_unclear=sum(not {"yes", "no", "not"} & set(re.findall(r"\w+", text.lower())) for text in predictions),
    )


def divide(a: int, b: int) -> float:
    """a / b, NaN where b is 0."""
    return a / b if b else math.nan
