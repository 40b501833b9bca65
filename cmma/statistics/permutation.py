"""Permutation tests, vectorised; p = (b + 1) / (n + 1) with b the permutations at least as extreme as the data.

Counting the data among the permutations keeps the test valid at any n (Phipson and Smyth 2010): the smallest p
is 1/(n + 1), and never 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_VALUES_AT_ONCE = 20_000_000
_FLIPS_AT_ONCE = 10_000
_ENOUGH_EXTREMES = 10  # p is then known to about a third of itself
_TIE = 1e-9  # sums in another order differ in the last digits; a tie must count as a tie


def sign_flip_p(
    differences: ArrayLike, n: int = 1000, seed: int = 0, n_max: int | None = None
) -> NDArray[np.float64]:
    """Two-sided p of "the paired differences are symmetric about zero", statistic |mean|.

    Args:
        differences: [samples] or [samples, tests]; every test sees the same flips, so that tests stay as
            dependent under the null as they are in the data.
        n: number of permutations.
        n_max: with it, tests that fewer than ten permutations have reached go on, at 10 n, 100 n … up to `n_max`
            permutations (sequential Monte Carlo, Besag and Clifford 1991). A p of 1/(n + 1) is the end of the
            scale, not a measurement, and no correction over more than n·alpha tests can accept it.

    Returns:
        A float, or [tests]. Symmetry is what is tested: a skewed distribution of mean zero is rejected somewhat
        more often than alpha in small samples.
    """
    values_NT, scalar = _columns(differences)
    rng = np.random.default_rng(seed)
    observed_T = np.abs(values_NT.sum(axis=0))
    extreme_T, drawn_T = np.zeros(len(observed_T)), np.zeros(len(observed_T))
    look, open_T = n, np.arange(len(observed_T))
    while len(open_T):
        done = int(drawn_T[open_T[0]])
        for start in range(done, look, _FLIPS_AT_ONCE):
            flips = min(_FLIPS_AT_ONCE, look - start)
            signs_RN = 2.0 * rng.integers(0, 2, size=(flips, len(values_NT))) - 1
            for chunk in _chunks(len(open_T), flips):
                tests = open_T[chunk]
                flipped_RT = np.abs(signs_RN @ values_NT[:, tests])
                extreme_T[tests] += _at_least(flipped_RT, observed_T[tests], values_NT[:, tests])
        drawn_T[open_T] = look
        if n_max is None or look >= n_max:
            break
        open_T = open_T[extreme_T[open_T] < _ENOUGH_EXTREMES]
        look = min(10 * look, n_max)
    p_T = (extreme_T + 1) / (drawn_T + 1)
    return p_T[0] if scalar else p_T


def label_permutation_p(a: ArrayLike, b: ArrayLike, n: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Two-sided p of "a and b come from one distribution", statistic |mean a − mean b|.

    Args:
        a, b: [samples_a] and [samples_b], or [samples_a, tests] and [samples_b, tests]; labels are shuffled over
            samples, the same way for every test.
    """
    a_NT, scalar = _columns(a)
    b_NT, _ = _columns(b)
    pooled_NT = np.concatenate([a_NT, b_NT])
    pooled_NT = pooled_NT - pooled_NT.mean(axis=0)
    contrast_N = np.concatenate([np.full(len(a_NT), 1 / len(a_NT)), np.full(len(b_NT), -1 / len(b_NT))])
    rng = np.random.default_rng(seed)
    contrasts_RN = rng.permuted(np.tile(contrast_N, (n, 1)), axis=1)
    observed_T = np.abs(contrast_N @ pooled_NT)
    extreme_T = np.zeros(pooled_NT.shape[1])
    for chunk in _chunks(pooled_NT.shape[1], n):
        drawn_RT = np.abs(contrasts_RN @ pooled_NT[:, chunk])
        extreme_T[chunk] = _at_least(drawn_RT, observed_T[chunk], pooled_NT[:, chunk])
    p_T = (extreme_T + 1) / (n + 1)
    return p_T[0] if scalar else p_T


def _columns(values: ArrayLike) -> tuple[NDArray[np.float64], bool]:
    values = np.asarray(values, dtype=np.float64)
    return (values[:, None], True) if values.ndim == 1 else (values, False)


def _chunks(tests: int, permutations: int) -> list[slice]:
    width = max(1, _VALUES_AT_ONCE // max(permutations, 1))
    return [slice(start, start + width) for start in range(0, tests, width)]


def _at_least(drawn_RT: NDArray, observed_T: NDArray, values_NT: NDArray) -> NDArray:
    tolerance_T = _TIE * np.abs(values_NT).max(axis=0, initial=0)
    return (drawn_RT >= observed_T - tolerance_T).sum(axis=0)
