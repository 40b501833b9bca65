"""Which known concept a feature stands for, chosen on one half of the samples and scored on the other.

A concept is a label of the data set. A latent's score for a sample is its largest activation in it; the concept with
the highest AUROC on the selection half is taken, and its AUROC and F1 are reported from the other half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cmma.data.samples import Sample

_RANKS_AT_ONCE = 8_000_000  # samples × features ranked at once: 64 MB in float64


@dataclass(frozen=True)
class Labels:
    """Concepts of the samples: `truth_NC[i, c]` says that sample i carries the label `names[c]`."""

    names: tuple[str, ...]
    truth_NC: np.ndarray


def sample_labels(samples: Sequence[Sample], min_count: int = 5) -> Labels:
    """Labels that at least `min_count` samples carry and as many lack, in alphabetical order."""
    counts = Counter(label for sample in samples for label in set(sample.labels))
    names = tuple(sorted(name for name, n in counts.items() if min_count <= n <= len(samples) - min_count))
    rows = [[name in labels for name in names] for labels in (set(sample.labels) for sample in samples)]
    return Labels(names, np.array(rows, dtype=bool).reshape(len(samples), len(names)))


def halves(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a random selection half and of the scoring half."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2:])


def auroc(scores_NK: np.ndarray, truth_NC: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every score for every label, [K, C]; ties count half.

    From the rank-sum statistic, so one product serves all pairs. NaN for labels that all or no samples carry.
    """
    positives_C = truth_NC.sum(0)
    negatives_C = len(truth_NC) - positives_C
    out_KC = np.empty((scores_NK.shape[1], truth_NC.shape[1]))
    size = max(1, _RANKS_AT_ONCE // max(1, len(scores_NK)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, scores_NK.shape[1], size):
            ranks_NK = rankdata(scores_NK[:, start:start + size], axis=0)
            rank_sum_KC = ranks_NK.T @ truth_NC
            out_KC[start:start + size] = (
                rank_sum_KC - positives_C * (positives_C + 1) / 2) / (positives_C * negatives_C)
    return out_KC


def best_threshold(scores_N: np.ndarray, truth_N: np.ndarray) -> float:
    """The score above or at which "positive" has the highest F1; the higher one among equals."""
    order = np.argsort(-scores_N, kind="stable")
    hits_N = np.cumsum(truth_N[order])
    f1_N = 2 * hits_N / (np.arange(1, len(order) + 1) + truth_N.sum())
    last_of_tie_N = np.append(np.diff(scores_N[order]) != 0, True)
    return float(scores_N[order][np.argmax(np.where(last_of_tie_N, f1_N, -1.0))])


def f1(predicted_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Harmonic mean of precision and recall; 0 when nothing is hit."""
    return float(2 * (predicted_N & truth_N).sum() / max(1, predicted_N.sum() + truth_N.sum()))


def match_concepts(scores_NK: np.ndarray, labels: Labels, seed: int = 0) -> pd.DataFrame:
    """Best concept of every latent, without reusing a sample for choosing and scoring.

    Returns:
        One row per latent: `feature, concept, concept_auroc, concept_f1`; `concept` is None and the scores are NaN for
        a latent that is constant on the selection half, or when there are no labels.
    """
    n_latents = scores_NK.shape[1]
    table = pd.DataFrame({
        "feature": np.arange(n_latents), "concept": pd.Series([None] * n_latents, dtype=object),
        "concept_auroc": np.nan, "concept_f1": np.nan,
    })
    choose, score = halves(len(scores_NK), seed)
    if not labels.names or len(choose) < 2:
        return table
    chosen_KC = np.nan_to_num(auroc(scores_NK[choose], labels.truth_NC[choose]), nan=0.0)
    scored_KC = auroc(scores_NK[score], labels.truth_NC[score])
    for feature in np.flatnonzero(np.ptp(scores_NK[choose], axis=0) > 0):
        concept = int(np.argmax(chosen_KC[feature]))
        threshold = best_threshold(scores_NK[choose, feature], labels.truth_NC[choose, concept])
        table.at[feature, "concept"] = labels.names[concept]
        table.at[feature, "concept_auroc"] = scored_KC[feature, concept]
        table.at[feature, "concept_f1"] = f1(scores_NK[score, feature] >= threshold, labels.truth_NC[score, concept])
    return table
