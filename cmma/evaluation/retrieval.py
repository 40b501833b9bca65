"""Image–text retrieval: recall at k among blocks of n pairs.

Ties count against the truth, and so does NaN: an encoder that maps everything to one point retrieves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmma.errors import DataError
from cmma.statistics.bootstrap import Interval, bootstrap_mean


@dataclass(frozen=True)
class Retrieval:
    """Ranks of the true partners, 0 = first.

    Attributes:
        image_to_text_N, text_to_image_N: int64, of the N = blocks · block pairs.
        block: candidates per query.
        n_left_out: pairs at the end that did not fill a block.
    """

    image_to_text_N: np.ndarray
    text_to_image_N: np.ndarray
    block: int
    n_left_out: int

    def recall(self, k: int, n_resamples: int = 10_000, seed: int = 0) -> dict[str, Interval]:
        """R@k in both directions; intervals resample pairs."""
        directions = {"image_to_text": self.image_to_text_N, "text_to_image": self.text_to_image_N}
        return {name: bootstrap_mean(ranks_N < k, n_resamples, seed) for name, ranks_N in directions.items()}

    def as_dict(self, ks: Sequence[int] = (1, 5, 10), n_resamples: int = 10_000) -> dict[str, Any]:
        """R@k for several k as plain values for JSON."""
        recalls = {
            f"{name}_r@{k}": interval.as_dict() for k in ks for name, interval in self.recall(k, n_resamples).items()
        }
        return recalls | {"block": self.block, "n": len(self.image_to_text_N), "n_left_out": self.n_left_out}


def retrieve(image_ND: np.ndarray, text_ND: np.ndarray, block: int = 100) -> Retrieval:
    """Rank the partners by cosine within consecutive blocks of `block` pairs (all pairs if there are fewer).

    Raises:
        DataError: fewer than two pairs.
    """
    n = len(image_ND)
    block = min(block, n)
    if block < 2 or len(text_ND) != n:
        raise DataError(f"retrieval needs at least two pairs; there are {n} images and {len(text_ND)} texts")
    image_ND, text_ND = _normalised(image_ND), _normalised(text_ND)
    forth, back = [], []
    for start in range(0, n - block + 1, block):
        rows = slice(start, start + block)
        cosine_BB = image_ND[rows] @ text_ND[rows].T
        forth.append(_pessimistic_ranks(cosine_BB))
        back.append(_pessimistic_ranks(cosine_BB.T))
    return Retrieval(np.concatenate(forth), np.concatenate(back), block, n % block)


def _normalised(vectors_ND: np.ndarray) -> np.ndarray:
    vectors_ND = np.asarray(vectors_ND, np.float64)
    with np.errstate(invalid="ignore"):
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def _pessimistic_ranks(cosine_BB: np.ndarray) -> np.ndarray:
    """int64[B]: how many wrong candidates of each row are not strictly worse than the true one on the diagonal."""
    worse_BB = cosine_BB < np.diagonal(cosine_BB)[:, None]  # false for NaN
    return len(cosine_BB) - 1 - worse_BB.sum(axis=1)
