"""Rates with and without a steering: their change, its interval over images, its size and its p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmma.statistics.bootstrap import RESAMPLES, Interval, bootstrap_ratio, bootstrap_statistic
from cmma.statistics.effect import cohens_d
from cmma.statistics.permutation import sign_flip_p

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Metric:
    """A ratio of two counts, pooled over images.

    Attributes:
        numerator, denominator: columns of `Sheet`.
        about: in a few words.
        relative: its change is given in percent of the value before; else as a difference.
    """

    numerator: str
    denominator: str
    about: str
    relative: bool = False


METRICS = {
    "object": Metric("absent_objects", "mentions", "mentions of objects that are not there (CHAIR_i)", True),
    "caption": Metric("hallucinating", "captions", "captions with such a mention (CHAIR_s)", True),
    "attribute": Metric("wrong_attributes", "attributed", "wrong attributes of objects that are there", True),
    "relation": Metric("wrong_relations", "relations", "wrong relations of objects that are there", True),
    "all": Metric("false_claims", "claims", "false ones among mentions, attributes and relations", True),
    "phrase": Metric("false_phrases", "phrases", "attributed mentions that fit nothing, absent objects included", True),
    "statement": Metric("false_statements", "statements", "relations that do not hold, absent objects included", True),
    "recall": Metric("recalled", "objects", "distinct objects of the image that are named"),
    "doubtful": Metric("doubtful_recalled", "doubtful_objects",
                       "the same of the kinds of object that are hallucinated elsewhere"),
    "described": Metric("described", "visible", "objects named with nothing wrong said of them"),
    "words": Metric("words", "captions", "length of captions"),
    "accuracy": Metric("right", "asked", "questions answered right"),
    "presence_random": Metric("random_right", "random_asked", "presence questions answered right, random"),
    "presence_popular": Metric("popular_right", "popular_asked", "the same, popular"),
    "presence_adversarial": Metric("adversarial_right", "adversarial_asked", "the same, adversarial"),
}


def pooled(columns: Sequence[Columns]) -> Columns:
    """Counts of several draws of a control, added up image by image."""
    return {name: np.sum([each[name] for each in columns], axis=0) for name in columns[0]}


def value(columns: Columns, metric: str) -> float:
    """The ratio over all images; NaN without a denominator, or where the examination did not ask."""
    chosen = METRICS[metric]
    below = columns[chosen.denominator].sum() if chosen.denominator in columns else 0.0
    return float(columns[chosen.numerator].sum() / below) if below else float("nan")


def interval(columns: Columns, metric: str, n_resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The ratio with its interval over images."""
    chosen = METRICS[metric]
    return bootstrap_ratio(columns[chosen.numerator], columns[chosen.denominator], n_resamples, seed)


def change(before: Columns, after: Columns, metric: str, n_resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Change of a ratio, paired over images: in percent of the value before, or as a difference (`Metric.relative`).

    Undefined where a rate was 0 before.
    """
    chosen = METRICS[metric]
    counts = [each[name] for each in (before, after) for name in (chosen.numerator, chosen.denominator)]

    def statistic(*counts: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            wrong_0, all_0, wrong_1, all_1 = (count.sum(axis) for count in counts)
            was, now = wrong_0 / all_0, wrong_1 / all_1
            if chosen.relative:
                return np.where(was > 0, 100 * (now / np.where(was > 0, was, 1) - 1), np.nan)
            return now - was

    return bootstrap_statistic(statistic, *counts, n_resamples=n_resamples, seed=seed)


def compare(
    condition: str, split: str, before: Columns, after: Columns, n_resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per metric: the value, its change, Cohen's d and the p of a paired sign-flip test over images.

    d and p are of each image's own ratio; images that give none before or after (nothing said of the kind) are left
    out of these two.
    """
    rows = []
    for name, metric in METRICS.items():
        if metric.denominator not in after:
            continue
        now, moved = interval(after, name, n_resamples, seed), change(before, after, name, n_resamples, seed)
        was_I, is_I = (_by_image(each, metric) for each in (before, after))
        both = np.isfinite(was_I) & np.isfinite(is_I)
        row: dict[str, Any] = {
            "condition": condition, "split": split, "metric": name, "before": value(before, name), "value": now.value,
            "low": now.low, "high": now.high, "kind": now.kind, "n": now.n, "change": moved.value,
            "change_low": moved.low, "change_high": moved.high, "change_se": moved.standard_error,
            "relative": metric.relative, "d": float("nan"), "p": float("nan"),
        }  # fmt: skip
        if both.sum() > 1:
            row |= {"d": float(cohens_d(is_I[both], was_I[both])),
                    "p": float(sign_flip_p(is_I[both] - was_I[both], 10_000, seed))}
        rows.append(row)
    return rows


def _by_image(columns: Columns, metric: Metric) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return columns[metric.numerator] / columns[metric.denominator]
