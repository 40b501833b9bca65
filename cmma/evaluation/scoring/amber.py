"""`metric=amber`: descriptions and yes/no answers against AMBER's released files (arXiv 2311.07397)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cmma.console import track
from cmma.errors import DataError
from cmma.evaluation.amber import (
    AmberWords,
    Description,
    nouns_of,
    printed,
    printed_f1,
    printed_rest,
    score_description,
    spacy_similarity,
)
from cmma.evaluation.chair import sum_by_image
from cmma.evaluation.questions import divide
from cmma.evaluation.scoring.job import Problems, ScoreJob
from cmma.evaluation.scoring.rows import MAX_CHARACTERS, read_contents, write_rows
from cmma.statistics.bootstrap import bootstrap_count_ratio

ANNOTATIONS, ASSOCIATED, SAFE, QUERIES = "annotations.json", "relation.json", "safe_words.txt", "query/query_all.json"
_GENERATIVE, _RELATION = "generative", "relation"
_KINDS = {
    "discriminative-hallucination": ("existence",), "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
}  # fmt: skip
_GROUPS = ("overall", "existence", "attribute", "state", "number", "action", _RELATION)


@dataclass(frozen=True)
class _Entry:
    """One annotation: what is there and what is expected (descriptions), or the right answer (questions)."""

    kind: str
    truth: Any
    targets: Any

    @property
    def groups(self) -> tuple[str, ...]:
        """What a question counts under beside "overall"; as in the released scorer, the rest is relation."""
        return _KINDS.get(self.kind, (_RELATION,))


def run(job: ScoreJob) -> dict[str, Any]:
    """CHAIR, cover, hal and cog of descriptions; accuracy, precision, recall and F1 of answers, overall and by kind.

    Predictions are rows {"id", "response"}; references are AMBER's `annotations.json` with the other released files
    beside it, as in its repository. Either part is None where it was not answered.

    Raises:
        DataError: files that cannot be read, not one known response, or what the generative part needs is missing.
    """
    folder = job.references if job.references.is_dir() else job.references.parent
    path = job.references / ANNOTATIONS if job.references.is_dir() else job.references
    entries = read_annotations(path, job.problems)
    said = read_responses(job.predictions, entries, job.problems)
    if not said:
        raise job.nothing("not one response to an annotation of the references")
    answered = {_part(entries[number]) for number in said}
    for number, entry in entries.items():
        if number not in said and _part(entry) in answered:
            job.problems.add("annotation_without_response", str(number))
    descriptions = {number: text for number, text in said.items() if entries[number].kind == _GENERATIVE}
    answers = {number: text for number, text in said.items() if entries[number].kind != _GENERATIVE}
    vectors = job.variant == "vectors"
    rows: list[dict[str, Any]] = []
    generative = _generative(job, descriptions, entries, folder, rows) if descriptions else None
    discriminative = _discriminative(job, answers, entries, folder, rows) if answers else None
    if job.config.per_sample:
        write_rows(job.config.per_sample, rows)
    found = {"name": "amber" if vectors else "amber_words", "generative" if vectors else "generative_words": generative,
             "discriminative": discriminative}  # fmt: skip
    if vectors and generative and discriminative:
        found["amber_score"] = (1 - generative["chair"] + discriminative["overall"]["f1"]) / 2
    return found


def _part(entry: _Entry) -> str:
    return _GENERATIVE if entry.kind == _GENERATIVE else entry.groups[0]


def _generative(
    job: ScoreJob, descriptions: Mapping[int, str], entries: Mapping[int, _Entry], folder: Path,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    words = read_words(folder, job.variant)
    counts = []
    for number, text in track(list(descriptions.items()), "Scoring descriptions"):
        entry = entries[number]
        found = score_description(nouns_of(text), entry.truth, entry.targets, words)
        counts.append((len(found.hallucinated), len(found.named), len(found.covered), len(entry.truth),
                       bool(found.hallucinated), 1, len(found.hit), len(entry.targets)))  # fmt: skip
        rows.append(_sample(number, entry, found))
    counts_NF = np.array(counts, dtype=np.int64)  # an image has one description
    names = ("chair", "cover", "hal", "cog")
    pairs = {name: counts_NF[:, 2 * i : 2 * i + 2].T for i, name in enumerate(names)}
    sums = {name: (int(part.sum()), int(whole.sum())) for name, (part, whole) in pairs.items()}
    result: dict[str, Any] = {
        **{name: divide(*both) for name, both in sums.items()},
        "n_descriptions": len(counts), "n_mentions": sums["chair"][1], "n_hallucinated": sums["chair"][0],
        "intervals": {
            name: bootstrap_count_ratio(part, whole, job.config.n_bootstrap, job.seed).as_dict()
            for name, (part, whole) in pairs.items()
        },
    }  # fmt: skip
    if job.variant == "vectors":
        percent = {name: printed(*sums[name]) for name in names}
        result["printed"] = percent | {"hal": printed_rest(sums["hal"][1] - sums["hal"][0], sums["hal"][1])}
    return result


def _sample(number: int, entry: _Entry, found: Description) -> dict[str, Any]:
    return {
        "id": number, "named": list(found.named), "hallucinated": list(found.hallucinated),
        "covered": [entry.truth[index] for index in sorted(found.covered)],
        "hit": [entry.targets[index] for index in sorted(found.hit)],
    }  # fmt: skip


def _discriminative(
    job: ScoreJob, answers: Mapping[int, str], entries: Mapping[int, _Entry], folder: Path,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    images = read_images(folder, job.problems)
    for number, text in answers.items():
        if text not in ("Yes", "No"):
            job.problems.add("answer_neither_Yes_nor_No", f"{number}: {text[:40]!r}")
        if images is not None and number not in images:
            job.problems.add("question_without_image", str(number))
        rows.append({"id": number, "type": entries[number].kind, "truth": entries[number].truth, "response": text})
    found = {}
    for group in _GROUPS:
        numbers = [number for number in answers if group == "overall" or group in entries[number].groups]
        if numbers:
            found[group] = _yes_no(job, numbers, answers, entries, images, group == "existence")
    return found


def _yes_no(
    job: ScoreJob, numbers: Sequence[int], answers: Mapping[int, str], entries: Mapping[int, _Entry],
    images: Mapping[int, str] | None, existence: bool,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of some questions; without an image of each, without intervals."""
    said_N = np.array([answers[number] for number in numbers])
    true_N = np.array([entries[number].truth for number in numbers])
    no_N, right_no_N = true_N == "no", (true_N == "no") & (said_N == "No")
    correct_N = right_no_N | (true_N == "yes") & (said_N == "Yes")
    ratios = {
        "accuracy": (correct_N, np.ones(len(numbers), int)), "precision": (right_no_N, said_N == "No"),
        "recall": (right_no_N, no_N), "f1": (2 * right_no_N, no_N.astype(int) + (said_N == "No")),
    }  # fmt: skip
    sums = {name: (int(part_N.sum()), int(whole_N.sum())) for name, (part_N, whole_N) in ratios.items()}
    percent = {name: printed(*sums[name]) for name in ("accuracy", "precision", "recall")}
    intervals = None
    if images is not None and all(number in images for number in numbers):
        intervals = {}
        for name, pair in ratios.items():
            counts_N2 = np.stack(pair, axis=1).astype(int)
            part_I, whole_I = sum_by_image(counts_N2, [images[number] for number in numbers]).T
            intervals[name] = bootstrap_count_ratio(part_I, whole_I, job.config.n_bootstrap, job.seed).as_dict()
    return {
        **{name: divide(*both) for name, both in sums.items()},
        "n_questions": len(numbers), "n_no": int(no_N.sum()), "intervals": intervals,
        "printed": percent | {"f1": printed_f1(percent["precision"], percent["recall"], existence)},
    }  # fmt: skip


def read_annotations(path: Path, problems: Problems) -> dict[int, _Entry]:
    """Number → annotation; the first of several with one number. Raises DataError without any."""
    entries: dict[int, _Entry] = {}
    for place, content in read_contents(path, problems):
        number, kind, truth = content.get("id"), content.get("type"), content.get("truth")
        targets = content.get("hallu")
        if not _is_number(number) or not isinstance(kind, str):
            problems.add("annotation_without_id_or_type", place)
        elif not (_are_words(truth) and _are_words(targets) if kind == _GENERATIVE else truth in ("yes", "no")):
            problems.add("annotation_without_truth", place)
        elif number in entries:
            problems.add("annotation_again", f"{place}, id {number}")
        else:
            entries[number] = _Entry(kind, truth, targets)
    if not entries:
        raise DataError(f"{path}: not one usable annotation; give AMBER's annotations.json")
    return entries


def read_responses(path: Path, entries: Mapping[int, _Entry], problems: Problems) -> dict[int, str]:
    """Number → response, of the numbers that are annotated; the first of several to one."""
    said: dict[int, str] = {}
    for place, content in read_contents(path, problems):
        number, text = content.get("id"), content.get("response")
        if not isinstance(text, str):
            problems.add("row_without_text", place)
        elif len(text) > MAX_CHARACTERS:
            problems.add("text_too_long", f"{place}, {len(text):,} characters")
        elif not _is_number(number) or number not in entries:
            problems.add("unknown_id", f"{place}, id {number}")
        elif number in said:
            problems.add("answer_again", f"{place}, id {number}")
        else:
            if not text.strip():
                problems.add("empty_text", place)
            said[number] = text
    return said


def read_words(folder: Path, variant: str) -> AmberWords:
    """The released `relation.json` and `safe_words.txt`. Raises DataError where one cannot be used."""
    path = folder / ASSOCIATED
    try:
        table = json.loads(path.read_bytes())
        safe = (folder / SAFE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}: descriptions need {ASSOCIATED} and {SAFE} beside {ANNOTATIONS} ({error})"
                        ) from error
    if not isinstance(table, dict) or not all(map(_are_words, table.values())):
        raise DataError(f"{path}: is no table of associated words; give AMBER's {ASSOCIATED}")
    similar = spacy_similarity() if variant == "vectors" else lambda first, second: False
    return AmberWords(table, frozenset(safe), similar)


def read_images(folder: Path, problems: Problems) -> dict[int, str] | None:
    """Question → its image, from the released queries; None, and named, where they are not there."""
    path = folder / QUERIES
    if not path.is_file():
        problems.add("no_intervals_of_answers", f"{path} is not there, which says what image a question is about")
        return None
    return {content["id"]: str(content["image"]) for _, content in read_contents(path, problems)
            if _is_number(content.get("id")) and "image" in content}  # fmt: skip


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
