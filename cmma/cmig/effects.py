"""Effects of ablating features one by one and two by two (paper, Eq. 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cmma.errors import DataError

Ablate = Callable[[Sequence[tuple[int, ...]]], NDArray[np.float64]]
"""`ablate(sets) -> readout [sets, samples]`: the readout of every sample with each set of features at zero."""


@dataclass(frozen=True)
class Effects:
    """The readout E under every ablation; rows are features or pairs, columns are samples.

    Attributes:
        features_K: feature numbers, in the dictionary's order of indices.
        pairs_P2: positions (i, j) in `features_K` of the measured pairs, unordered: do(a_i=0, a_j=0) has no order.
        clean_N: E(∅). single_KN: E(i). pair_PN: E(i, j). All in the readout's own unit.
        sampling_P: for how many pairs of the graph each measured one stands (inverse of the probability that it was
            measured); None: each for itself.
    """

    features_K: NDArray[np.int64]
    pairs_P2: NDArray[np.int64]
    clean_N: NDArray[np.float64]
    single_KN: NDArray[np.float64]
    pair_PN: NDArray[np.float64]
    sampling_P: NDArray[np.float64] | None = None

    @property
    def weight_P(self) -> NDArray[np.float64]:
        """`sampling_P`, or ones."""
        return np.ones(len(self.pairs_P2)) if self.sampling_P is None else self.sampling_P

    @property
    def spread(self) -> float:
        """Standard deviation of the clean readout over samples: the unit of every reported strength."""
        return float(self.clean_N.std(ddof=1))

    @property
    def main_KN(self) -> NDArray[np.float64]:
        """E(i) − E(∅): what ablating feature i alone changes."""
        return self.single_KN - self.clean_N

    @property
    def excess_PN(self) -> NDArray[np.float64]:
        """E(i,j) − E(i) − E(j) + E(∅), signed: zero where the two features act independently (additively)."""
        i, j = self.pairs_P2.T
        return self.pair_PN - self.single_KN[i] - self.single_KN[j] + self.clean_N

    def directed(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Every pair in both directions i→j.

        Returns:
            edges_E2: positions (i, j); the first P rows are the pairs as stored, the next P reversed.
            conditional_EN: E(i,j) − E(i), the effect of ablating j once i is ablated. The mean of its absolute
                value is Eq. 7's I(i→j); compare `main_KN[j]`, the same effect while i is present.
        """
        edges_E2 = np.concatenate([self.pairs_P2, self.pairs_P2[:, ::-1]])
        return edges_E2, np.concatenate([self.pair_PN, self.pair_PN]) - self.single_KN[edges_E2[:, 0]]


def pairwise_effects(
    ablate: Ablate, features: Sequence[int], pairs: Sequence[tuple[int, int]] | None = None,
    sampling_P: NDArray[np.float64] | None = None,
) -> Effects:  # fmt: skip
    """Measure E(∅), every E(i) and every E(i, j), each once, with one call of `ablate`.

    Args:
        ablate: the readout under ablations; `()` is the clean run.
        features: distinct feature numbers.
        pairs: pairs of feature numbers to measure; default: all.
        sampling_P: see `Effects`.
    """
    features_K = np.asarray(sorted(features), dtype=np.int64)
    if len(np.unique(features_K)) < len(features_K):
        raise DataError("pairwise effects need distinct features; a feature was listed twice")
    chosen = combinations(features_K.tolist(), 2) if pairs is None else (tuple(sorted(pair)) for pair in pairs)
    pairs_P2 = np.searchsorted(features_K, np.array(list(chosen), dtype=np.int64).reshape(-1, 2))
    singles = [(feature,) for feature in features_K.tolist()]
    doubles = [tuple(pair) for pair in features_K[pairs_P2].tolist()]
    readout = np.asarray(ablate([(), *singles, *doubles]), dtype=np.float64)
    k = len(singles)
    return Effects(features_K, pairs_P2, readout[0], readout[1 : 1 + k], readout[1 + k :], sampling_P)


def concatenate(parts: Sequence[Effects]) -> Effects:
    """Join effects measured on disjoint samples (chunks, ranks) for the same features and pairs."""
    first = parts[0]
    for part in parts[1:]:
        if not (np.array_equal(part.features_K, first.features_K) and np.array_equal(part.pairs_P2, first.pairs_P2)):
            raise DataError("effects of different features or pairs cannot be joined over samples")
    return Effects(
        first.features_K,
        first.pairs_P2,
        np.concatenate([part.clean_N for part in parts]),
        np.concatenate([part.single_KN for part in parts], axis=1),
        np.concatenate([part.pair_PN for part in parts], axis=1),
        first.sampling_P,
    )
