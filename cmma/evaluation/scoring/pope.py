"""`metric=pope`: yes/no answers to released questions (Li et al. 2023, arXiv 2305.10355)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmma.errors import DataError
from cmma.evaluation.chair import sum_by_image
from cmma.evaluation.questions import parse_yes_no, score_yes_no
from cmma.evaluation.scoring.job import Problems, ScoreJob
from cmma.evaluation.scoring.rows import MAX_CHARACTERS, read_contents, read_rows, write_rows
from cmma.statistics.bootstrap import Interval, bootstrap_count_ratio

_ANSWER = ("answer", "prediction", "response", "text", "caption")


class _Question(NamedTuple):
    """One released question."""

    number: str
    image: str
    label: str


def run(job: ScoreJob) -> dict[str, Any]:
    """Accuracy, precision, recall, F1 and the share of "yes", intervals by image.

    References are POPE's files: rows {"question_id", "image", "text", "label"}. Predictions are rows with
    "question_id" and "answer" (or "text"); without the number they are taken in the order of the questions.

    Raises:
        DataError: files that cannot be read, or not one answered question.
    """
    questions = read_questions(job.references, job.problems)
    answers = read_answers(job.predictions, questions, job.problems)
    asked = [question for question in questions if question.number in answers]
    for question in questions:
        if question.number not in answers:
            job.problems.add("question_without_answer", question.number)
    if not asked:
        raise job.nothing("not one answer to a question of the references")
    said = [answers[question.number] for question in asked]
    labels = [question.label for question in asked]
    scores = score_yes_no(said, labels)
    yes_N = np.array([parse_yes_no(text) == "yes" for text in said])
    true_N = np.array([label == "yes" for label in labels])
    right_N, ones_N = yes_N & true_N, np.ones(len(asked), int)
    ratios = {
        "accuracy": (yes_N == true_N, ones_N), "precision": (right_N, yes_N), "recall": (right_N, true_N),
        "f1": (2 * right_N, yes_N.astype(int) + true_N), "yes_ratio": (yes_N, ones_N),
    }  # fmt: skip
    images = [question.image for question in asked]
    intervals = {
        name: _interval(job, np.stack([over, under], axis=1).astype(int), images).as_dict()
        for name, (over, under) in ratios.items()
    }
    if job.config.per_sample:
        write_rows(job.config.per_sample, (
            {"question_id": question.number, "image": question.image, "label": question.label, "answer": text,
             "read_as": parse_yes_no(text)}
            for question, text in zip(asked, said, strict=True)
        ))
    values = {name: getattr(scores, name) for name in ratios}
    return {
        **{name: None if math.isnan(value) else value for name, value in values.items()},
        "n_questions": scores.n, "n_yes": scores.n_yes, "n_unclear": scores.n_unclear, "n_images": len(set(images)),
        "intervals": intervals,
    }  # fmt: skip


def _interval(job: ScoreJob, counts_N2: np.ndarray, images: list[str]) -> Interval:
    over_I, under_I = sum_by_image(counts_N2, images).T
    return bootstrap_count_ratio(over_I, under_I, job.config.n_bootstrap, job.seed)


def read_questions(path: Path, problems: Problems) -> list[_Question]:
    """Questions with the answer "yes" or "no"; the first of several with one number. Raises DataError without any."""
    questions: dict[str, _Question] = {}
    for place, image, content in read_rows(path, problems):
        label = content.get("label")
        if not isinstance(label, str) or label.strip().lower() not in ("yes", "no"):
            problems.add("question_without_label", place)
            continue
        number = str(content.get("question_id", len(questions) + 1))
        if number in questions:
            problems.add("question_again", f"{place}, question {number}")
        questions.setdefault(number, _Question(number, image, label.strip().lower()))
    if not questions:
        raise DataError(f"{path}: not one question with a label yes or no; give a file of POPE's format")
    return list(questions.values())


def read_answers(path: Path, questions: list[_Question], problems: Problems) -> dict[str, str]:
    """Number of a question → what was answered; the first of several answers to one question."""
    rows = []
    for place, content in read_contents(path, problems):
        text = next((content[name] for name in _ANSWER if name in content), None)
        if not isinstance(text, str):
            problems.add("row_without_text", place)
        elif len(text) > MAX_CHARACTERS:
            problems.add("text_too_long", f"{place}, {len(text):,} characters")
        else:
            if not text.strip():
                problems.add("empty_text", place)
            rows.append((place, content.get("question_id"), text))
    if all(number is None for _, number, _ in rows):
        if len(rows) != len(questions):
            raise DataError(f"{path}: {len(rows)} usable answers without question_id to {len(questions)} questions; "
                            "give each its question_id")
        return {question.number: text for question, (_, _, text) in zip(questions, rows, strict=True)}
    known = {question.number for question in questions}
    answers: dict[str, str] = {}
    for place, number, text in rows:
        if str(number) not in known:
            problems.add("unknown_question", f"{place}, question {number}")
        elif str(number) in answers:
            problems.add("answer_again", f"{place}, question {number}")
        else:
            answers[str(number)] = text
    return answers
