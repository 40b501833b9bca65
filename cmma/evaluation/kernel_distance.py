"""Kernel distance: the unbiased squared MMD with a cubic kernel (Bińkowski et al. 2018, arXiv 1801.01401).

Of Inception features it is KID. Unlike the Fréchet distance it is unbiased, so it also serves with few images.
CMMD is its relative with a Gaussian kernel on CLIP embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmma.errors import DataError


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over random subsets.

    Attributes:
        name: `kd_<encoder>`, or `kid_<variant>` of Inception features.
        value, deviation: over `subsets` subsets of `subset_size` features of each set.
    """

    name: str
    value: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    first_ND: np.ndarray, second_ND: np.ndarray, name: str, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID's protocol: the mean of `mmd2` over random subsets of at most `subset_size`, drawn without replacement.

    Raises:
        DataError: fewer than two features in a set, or sets of different width.
    """
    size = min(subset_size, len(first_ND), len(second_ND))
    if size < 2 or first_ND.shape[1] != second_ND.shape[1]:
        raise DataError(f"{name} needs two sets of at least two features of one width")
    rng = np.random.default_rng(seed)
    values = [
        mmd2(first_ND[rng.choice(len(first_ND), size, replace=False)],
             second_ND[rng.choice(len(second_ND), size, replace=False)])
        for _ in range(subsets)
    ]  # fmt: skip
    return KernelDistance(name, float(np.mean(values)), float(np.std(values)), subsets, size)


def mmd2(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x·y / d + 1)³."""
    first_ND, second_ND = np.asarray(first_ND, np.float64), np.asarray(second_ND, np.float64)

    def kernel(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
        return (a_ND @ b_ND.T / a_ND.shape[1] + 1) ** 3

    def mean_off_diagonal(k_NN: np.ndarray) -> float:
        return (k_NN.sum() - np.trace(k_NN)) / (len(k_NN) * (len(k_NN) - 1))

    within = mean_off_diagonal(kernel(first_ND, first_ND)) + mean_off_diagonal(kernel(second_ND, second_ND))
    return float(within - 2 * kernel(first_ND, second_ND).mean())


def cmmd(first_ND: np.ndarray, second_ND: np.ndarray, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603): 1000 · MMD² with a Gaussian kernel on unit-norm embeddings.

    The biased estimator, as published: every pair counts, each embedding with itself too.

    Raises:
        DataError: an empty set, or sets of different width.
    """
    if not len(first_ND) or not len(second_ND) or first_ND.shape[1] != second_ND.shape[1]:
        raise DataError("CMMD needs two sets of embeddings of one width")

    def unit(a_ND: np.ndarray) -> np.ndarray:
        a_ND = np.asarray(a_ND, np.float64)
        return a_ND / np.linalg.norm(a_ND, axis=1, keepdims=True)

    def mean_kernel(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
        return float(np.exp((a_ND @ b_ND.T - 1) / sigma**2).mean())  # |a − b|² = 2 − 2 a·b

    first_ND, second_ND = unit(first_ND), unit(second_ND)
    within = mean_kernel(first_ND, first_ND) + mean_kernel(second_ND, second_ND)
    return scale * (within - 2 * mean_kernel(first_ND, second_ND))
