"""Repeated measures: every unit (a model with a seed) is measured under every level of one factor (a phase)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cmma.errors import DataError


@dataclass(frozen=True)
class RepeatedAnova:
    """F(df_effect, df_error) of a within-unit factor.

    Attributes:
        p: as if the differences between levels all had one variance (sphericity). epsilon: Greenhouse and Geisser's
            measure of how far that holds, 1 where it does; p_corrected: p with both degrees of freedom times it.
        eta_squared: share of the whole variance that lies between levels. partial_eta_squared: of what lies between
            levels and in the error, the differences between units left out.
    """

    f: float
    df_effect: int
    df_error: int
    p: float
    epsilon: float
    p_corrected: float
    eta_squared: float
    partial_eta_squared: float
    n_units: int

    def as_dict(self) -> dict[str, float | int]:
        """Plain values for JSON or a table row."""
        return asdict(self)


def repeated_anova(values_UL: ArrayLike) -> RepeatedAnova:
    """One-way repeated-measures ANOVA with Greenhouse and Geisser's (1959) correction.

    Args:
        values_UL: [units, levels], complete.

    Raises:
        DataError: fewer than two units or levels, or a missing value.
    """
    values_UL = _complete(values_UL, "a repeated-measures ANOVA")
    n, levels = values_UL.shape
    grand = values_UL.mean()
    total = float(((values_UL - grand) ** 2).sum())
    effect = n * float(((values_UL.mean(axis=0) - grand) ** 2).sum())
    units = levels * float(((values_UL.mean(axis=1) - grand) ** 2).sum())
    error = max(0.0, total - effect - units)
    df_effect, df_error = levels - 1, (levels - 1) * (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        f = float(np.float64(effect / df_effect) / np.float64(error / df_error))
        eta, partial = (float(np.float64(effect) / whole) for whole in (total, effect + error))
    epsilon = greenhouse_geisser(values_UL)
    return RepeatedAnova(
        f, df_effect, df_error, float(stats.f.sf(f, df_effect, df_error)), epsilon,
        float(stats.f.sf(f, epsilon * df_effect, epsilon * df_error)), eta, partial, n,
    )  # fmt: skip


def greenhouse_geisser(values_UL: NDArray[np.float64]) -> float:
    """ε = (tr S)² / ((L − 1) tr S²) of the covariance of orthonormal contrasts between L levels."""
    levels = values_UL.shape[1]
    covariance_LL = np.cov(values_UL, rowvar=False)
    centring_LL = np.eye(levels) - 1 / levels
    contrast_LL = centring_LL @ covariance_LL @ centring_LL
    squares = float((contrast_LL**2).sum())
    return float(np.trace(contrast_LL) ** 2 / ((levels - 1) * squares)) if squares > 0 else 1.0


@dataclass(frozen=True)
class Concordance:
    """Kendall's W: 1 where all units rank the levels alike, 0 where their rankings cancel; p by χ²(levels − 1)."""

    w: float
    chi_squared: float
    df: int
    p: float
    n_units: int

    def as_dict(self) -> dict[str, float | int]:
        """Plain values for JSON or a table row."""
        return asdict(self)


def kendalls_w(values_UL: ArrayLike) -> Concordance:
    """Agreement of the units about the order of the levels (Kendall and Babington Smith 1939), corrected for ties.

    Args:
        values_UL: [units, levels], complete.

    Raises:
        DataError: fewer than two units or levels, or a missing value.
    """
    values_UL = _complete(values_UL, "Kendall's W")
    n, levels = values_UL.shape
    ranks_UL = stats.rankdata(values_UL, axis=1)
    deviation = float(((ranks_UL.sum(axis=0) - n * (levels + 1) / 2) ** 2).sum())
    tied = [np.unique(row, return_counts=True)[1] for row in ranks_UL]
    ties = sum(float((counts**3 - counts).sum()) for counts in tied)
    largest = n**2 * (levels**3 - levels) - n * ties
    w = 12 * deviation / largest if largest > 0 else float("nan")
    chi_squared = n * (levels - 1) * w
    return Concordance(w, chi_squared, levels - 1, float(stats.chi2.sf(chi_squared, levels - 1)), n)


def _complete(values: ArrayLike, what: str) -> NDArray[np.float64]:
    values_UL = np.asarray(values, dtype=np.float64)
    if values_UL.ndim != 2 or min(values_UL.shape) < 2:
        raise DataError(f"{what} needs at least two units under at least two levels; it got {values_UL.shape}")
    if not np.isfinite(values_UL).all():
        raise DataError(f"{what} needs a value of every unit under every level; "
                        f"{int((~np.isfinite(values_UL)).sum())} are missing")
    return values_UL
