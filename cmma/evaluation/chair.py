"""CHAIR: how many of the objects that captions mention are not in the image (Rohrbach et al. 2018, arXiv 1809.02156).

CHAIR_i = hallucinated mentions / all mentions, pooled over the corpus; every repetition counts.
CHAIR_s = captions with a hallucinated mention / all captions, those without any mention included.
Beside them always recall (distinct objects named / distinct objects present, pooled) and the mean length in words:
shorter captions hallucinate less for free.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmma.errors import DataError
from cmma.evaluation.vocabulary import Mention, ObjectWords
from cmma.statistics.bootstrap import Interval, bootstrap_count_ratio


@dataclass(frozen=True)
class CaptionScore:
    """One caption against the objects of its image.

    Attributes:
        mentions: all of them, in order.
        hallucinated: those whose object is not in the image.
        recalled: node words of the image that are mentioned.
        n_objects: number of distinct objects in the image.
        n_words: pieces between single spaces, as the published mean lengths count.
    """

    mentions: tuple[Mention, ...]
    hallucinated: tuple[Mention, ...]
    recalled: frozenset[str]
    n_objects: int
    n_words: int


@dataclass(frozen=True)
class Chair:
    """CHAIR over a corpus; every interval resamples images.

    Attributes:
        chair_i, chair_s, recall, mean_words: see the module. NaN where there is nothing to divide by.
        n_captions, n_mentions, n_hallucinated, n_without_mention: counts behind them.
        vocabulary: name of the word table.
        captions: the score of each caption, in the order given.
    """

    chair_i: Interval
    chair_s: Interval
    recall: Interval
    mean_words: Interval
    n_captions: int
    n_mentions: int
    n_hallucinated: int
    n_without_mention: int
    vocabulary: str
    captions: tuple[CaptionScore, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the single captions."""
        plain = {name: value for name, value in vars(self).items() if name != "captions"}
        return {name: value.as_dict() if isinstance(value, Interval) else value for name, value in plain.items()}


def score_caption(caption: str, truth: Collection[str], vocabulary: ObjectWords) -> CaptionScore:
    """One caption against the node words `truth`."""
    mentions = tuple(vocabulary.mentions(caption))
    return CaptionScore(
        mentions=mentions,
        hallucinated=tuple(mention for mention in mentions if mention.node not in truth),
        recalled=frozenset(mention.node for mention in mentions if mention.node in truth),
        n_objects=len(set(truth)),
        n_words=len(caption.split(" ")) if caption else 0,
    )


def chair(
    captions: Sequence[str],
    objects: Sequence[Collection[str]],
    vocabulary: ObjectWords,
    images: Sequence[Hashable] | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Chair:
    """Score captions against the objects that are in their images.

    Args:
        captions: one text each.
        objects: for each caption, names of everything in its image.
        vocabulary: what counts as a mention.
        images: for each caption, its image; captions of one image are resampled together. None: all differ.

    Raises:
        DataError: no captions, or an object that the vocabulary does not know.
    """
    if not captions:
        raise DataError("CHAIR of no captions is undefined; give at least one")
    scores = [
        score_caption(caption, vocabulary.truth(names), vocabulary)
        for caption, names in zip(captions, objects, strict=True)
    ]
    counts_NF = np.array([
        (len(s.mentions), len(s.hallucinated), bool(s.hallucinated), 1, len(s.recalled), s.n_objects, s.n_words)
        for s in scores
    ])  # fmt: skip
    mentions, hallucinated, faulty, ones, recalled, present, words = sum_by_image(counts_NF, images).T

    def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
        return bootstrap_count_ratio(numerators, denominators, n_resamples=n_resamples, seed=seed)

    return Chair(
        chair_i=ratio(hallucinated, mentions),
        chair_s=ratio(faulty, ones),
        recall=ratio(recalled, present),
        mean_words=ratio(words, ones),
        n_captions=len(scores),
        n_mentions=int(mentions.sum()),
        n_hallucinated=int(hallucinated.sum()),
        n_without_mention=sum(not score.mentions for score in scores),
        vocabulary=vocabulary.name,
        captions=tuple(scores),
    )


def sum_by_image(counts_NF: np.ndarray, images: Sequence[Hashable] | None) -> np.ndarray:
    """Add up the rows of each image, in order of first appearance: [N, F] → [images, F]."""
    if images is None:
        return counts_NF
    row_of: dict[Hashable, int] = {}
    rows_N = np.array([row_of.setdefault(image, len(row_of)) for image in images], dtype=np.int64)
    sums_IF = np.zeros((len(row_of), counts_NF.shape[1]), dtype=counts_NF.dtype)
    np.add.at(sums_IF, rows_N, counts_NF)
    return sums_IF
