"""Fréchet distance between two sets of features, each taken as a Gaussian (Dowson & Landau 1982; Heusel et al. 2017).

d² = |μ₁ − μ₂|² + tr(Σ₁) + tr(Σ₂) − 2 tr(Σ₁^½ Σ₂ Σ₁^½)^½, by the eigenvalues of a symmetric matrix. It is called FID
only of Inception features, and then the resize belongs to the name; `distance_name` sees to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from cmma.console import warn
from cmma.errors import DataError

INCEPTION_VARIANTS = ("legacy", "clean", "torchmetrics")
"""How images are brought to 299 pixels before Inception: three families of numbers that do not compare."""


class Moments:
    """Mean and covariance of features that arrive in batches, in float64 (Chan et al. 1983: no cancellation).

    Args:
        d: width of the features.
    """

    def __init__(self, d: int) -> None:
        self.n = 0
        self.mean_D = np.zeros(d)
        self._scatter_DD = np.zeros((d, d))

    def update(self, features_ND: np.ndarray) -> Moments:
        """Take one more batch in. Raises DataError if a feature is not finite."""
        features_ND = np.asarray(features_ND, np.float64)
        if not np.isfinite(features_ND).all():
            raise DataError("features hold NaN or infinity; a distance of them is undefined")
        if len(features_ND):
            batch = Moments(features_ND.shape[1])
            batch.n, batch.mean_D = len(features_ND), features_ND.mean(axis=0)
            centred_ND = features_ND - batch.mean_D
            batch._scatter_DD = centred_ND.T @ centred_ND
            self.merge(batch)
        return self

    def merge(self, other: Moments) -> Moments:
        """Take in what another process has gathered."""
        if not self.n:
            self.n, self.mean_D, self._scatter_DD = other.n, other.mean_D, other._scatter_DD.copy()
        elif other.n:
            shift_D = other.mean_D - self.mean_D
            total = self.n + other.n
            self._scatter_DD += other._scatter_DD + np.outer(shift_D, shift_D) * (self.n * other.n / total)
            self.mean_D = self.mean_D + shift_D * (other.n / total)
            self.n = total
        return self

    @property
    def covariance_DD(self) -> np.ndarray:
        """Unbiased covariance, float64[D, D]. Raises DataError with fewer than two features."""
        if self.n < 2:
            raise DataError(f"a covariance needs at least two images; there are {self.n}")
        return self._scatter_DD / (self.n - 1)


@dataclass(frozen=True)
class Distance:
    """A distance with what its value depends on: the features, and the two sample sizes (it is biased upwards).

    Attributes:
        name: `fd_<encoder>` or `fid_<variant>`.
        value: the squared Fréchet distance, as FID is reported.
        n_first, n_second: numbers of features.
        d: their width.
        rank_deficient: one of the covariances has fewer images than dimensions behind it.
    """

    name: str
    value: float
    n_first: int
    n_second: int
    d: int
    rank_deficient: bool


def frechet_distance(first: Moments, second: Moments, name: str) -> Distance:
    """Distance between two sets of features, called `name` (see `distance_name`).

    Fewer images than dimensions leave a covariance without full rank: the value is still defined, by eigenvalues that
    are zero, but says more about the number of images than about them; this is marked and warned about.
    """
    d = len(first.mean_D)
    if len(second.mean_D) != d:
        raise DataError(f"features of {d} and of {len(second.mean_D)} dimensions have no distance")
    value = gaussian_distance(first.mean_D, first.covariance_DD, second.mean_D, second.covariance_DD)
    deficient = min(first.n, second.n) <= d
    if deficient:
        fewest = min(first.n, second.n)
        warn(f"{name}: {fewest} images for {d} dimensions; the covariance is singular, take more images")
    return Distance(name, value, first.n, second.n, d, deficient)


def gaussian_distance(mean_D: np.ndarray, cov_DD: np.ndarray, other_D: np.ndarray, other_DD: np.ndarray) -> float:
    """Squared Fréchet distance between two Gaussians.

    Any R with R Rᵀ = Σ₁ serves as root: Rᵀ Σ₂ R has the eigenvalues of Σ₁ Σ₂. Cholesky's is the cheapest, and needs a
    covariance of full rank.
    """
    try:
        root_DD = linalg.cholesky(cov_DD, lower=True)
        half_DD = linalg.blas.dtrmm(1.0, root_DD, other_DD, lower=True, trans_a=True)
        inner_DD = linalg.blas.dtrmm(1.0, root_DD, half_DD, side=1, lower=True)
    except linalg.LinAlgError:
        values_D, vectors_DD = linalg.eigh(cov_DD)
        root_DD = vectors_DD * np.sqrt(values_D.clip(min=0))
        inner_DD = root_DD.T @ other_DD @ root_DD
    overlap = np.sqrt(linalg.eigvalsh((inner_DD + inner_DD.T) / 2).clip(min=0)).sum()
    shift_D = mean_D - other_D
    return max(float(shift_D @ shift_D + np.trace(cov_DD) + np.trace(other_DD) - 2 * overlap), 0.0)


def distance_name(encoder: str, inception_variant: str | None = None, prefix: str = "fd") -> str:
    """`fd_<encoder>`; for Inception features, `fid_<variant>` with the variant of the resize.

    Raises:
        DataError: an unknown variant.
    """
    if inception_variant is None:
        return f"{prefix}_{encoder}"
    if inception_variant not in INCEPTION_VARIANTS:
        raise DataError(f"FID variant {inception_variant!r} is not one of {', '.join(INCEPTION_VARIANTS)}")
    return f"{'fid' if prefix == 'fd' else prefix}_{inception_variant}"
