"""Answer parsing, and POPE's numbers against scikit-learn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from cmma.data.samples import Question
from cmma.errors import DataError
from cmma.evaluation.questions import Answered, is_correct, parse_yes_no, score_questions, score_yes_no

POPE = Path(__file__).parents[3] / "shared" / "data" / "pope" / "coco_pope_random.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"), ("No, there is not.", "no"), ("no.", "no"), ("There is not a dog", "no"), ("yes", "yes"),
        ("Yes. But no dog.", "yes"),  # the first sentence decides
        ("NO", "yes"), ("Nope", "yes"), ("perhaps", "yes"), ("", "yes"), ("Not at all", "yes"),  # quirks of the rule
    ],
)  # fmt: skip
def test_yes_no_is_read_as_pope_reads_it(text, expected):
    assert parse_yes_no(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "correct"),
    [
        ("red", "red", True), ("Red.", "red", True), ("a red circle", "red circle", True), ("red circle", "red", True),
        ("blue", "red", False), ("", "red", False), ("reddish", "red", False), ("2", "two", True), ("Two!", "2", True),
        ("circle red", "red circle", False), ("no", "no", True), ("yes, no doubt", "yes", False),
    ],
)  # fmt: skip
def test_short_answers(prediction, answer, correct):
    assert is_correct(prediction, answer) is correct


def test_yes_no_numbers_equal_scikit_learn():
    rng = np.random.default_rng(0)
    answers = rng.choice(["yes", "no"], 500, p=[0.4, 0.6])
    predictions = np.where(rng.random(500) < 0.7, answers, rng.choice(["yes", "no"], 500))
    ours = score_yes_no(list(predictions), list(answers))
    assert ours.accuracy == pytest.approx(metrics.accuracy_score(answers, predictions))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        answers, predictions, pos_label="yes", average="binary"
    )
    assert (ours.precision, ours.recall, ours.f1) == pytest.approx((precision, recall, f1))
    assert ours.yes_ratio == pytest.approx((predictions == "yes").mean())


def test_nothing_to_divide_by_is_nan_and_unclear_answers_are_counted():
    scores = score_yes_no(["no", "no"], ["no", "no"])
    assert scores.accuracy == 1
    assert all(map(math.isnan, (scores.precision, scores.recall, scores.f1)))
    assert score_yes_no(["hm", "yes"], ["yes", "yes"]).n_unclear == 1
    with pytest.raises(DataError, match="neither yes nor no: 'red'"):
        score_yes_no(["yes"], ["red"])


def test_accuracy_by_kind_with_intervals_by_image():
    exists, color = Question("is there a ring?", "yes", "existence"), Question("what color?", "red", "color")
    answered = [Answered(i, exists, "yes" if i % 4 else "no") for i in range(40)]
    answered += [Answered(i, color, "red" if i % 2 else "blue") for i in range(40)]
    scores = score_questions(answered)
    assert scores.accuracy.value == pytest.approx((30 + 20) / 80)
    assert scores.accuracy.n == 40
    assert scores.by_kind["existence"].value == pytest.approx(0.75)
    assert scores.by_kind["color"].value == pytest.approx(0.5)
    assert scores.yes_no is not None
    assert (scores.yes_no.n, scores.yes_no.recall) == (40, pytest.approx(0.75))
    json.dumps(scores.as_dict(), allow_nan=False)
    with pytest.raises(DataError, match="no questions"):
        score_questions([])


@pytest.mark.skipif(not POPE.is_file(), reason="the development data is not here")
def test_released_pope_questions():
    """Published composition: 3,000 questions a split, 1,500 with the answer yes."""
    labels = [json.loads(line)["label"] for line in POPE.read_text().splitlines()]
    always_yes = score_yes_no(["Yes, there is."] * len(labels), labels)
    assert (always_yes.n, always_yes.n_yes) == (len(labels), labels.count("yes"))
    assert (always_yes.accuracy, always_yes.recall, always_yes.yes_ratio) == (labels.count("yes") / len(labels), 1, 1)
    assert score_yes_no(labels, labels).f1 == 1
