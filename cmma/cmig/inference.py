"""Which interactions are more than chance, and how strong they are.

What is tested. A model is deterministic: a mean *absolute* interaction above numerical resolution is a fact about
the measured samples and leaves nothing to test; flipping signs cannot even change it. What sampling leaves open is
whether an interaction is *systematic*. Both tests use one null, for a pair (i, j):

    H0: within a sample, the effect of ablating j while i is present, E(j) − E(∅), and once i is ablated,
        E(i,j) − E(i), are exchangeable.

Its permutations swap the two in any subset of the samples. Two statistics:

    excess   |mean of the signed excess| (a swap flips the sign of E(i,j) − E(i) − E(j) + E(∅)). One test per
             unordered pair: do i and j depart from additivity in a consistent direction?
    beyond   |mean(|E(i,j) − E(i)| − |E(j) − E(∅)|)|. One per direction: is Eq. 7's I(i→j) different from
             what it would be if i did not matter, I(∅→j) = j's own main effect? Eq. 7 by itself is mostly that.

Limits. An interaction whose sign changes from sample to sample with mean zero is invisible to `excess`, and one that
turns an effect round without changing its size is invisible to `beyond`; each often sees what the other misses, and
the mean absolute excess with its interval shows both. Permuting sources i of one target j (rather than i against
nothing) was rejected: a single true partner of j contaminates the null of all its other edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmma.cmig.effects import Effects
from cmma.errors import DataError
from cmma.statistics.bootstrap import Interval, bootstrap_columns
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p

RESOLUTION = 1e-5  # in units of the readout's spread: float32 forward passes do not agree beyond it
CLASSES = ("strong", "moderate", "weak")


def edge_table(
    effects: Effects,
    permutations: int = 1000,
    max_permutations: int | None = 100_000,
    resamples: int = 10_000,
    strong: float = 0.5,
    moderate: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per direction i→j, strengths in units of the readout's clean spread (held fixed in the intervals).

    Columns:
        source, target: feature numbers of i and j.
        strength, strength_low, strength_high: Eq. 7, I(i→j), with its 95% BCa interval over samples.
        target_effect: E|E(j) − E(∅)|, what Eq. 7 is when i does not matter.
        beyond, p_beyond, q_beyond: strength − target_effect; its p; BH over both directions of all pairs.
        excess, excess_low, excess_high: mean absolute excess interaction (the same for i→j and j→i).
        excess_mean, p_excess, q_excess: mean signed excess; its p; BH over unordered pairs.
        n_interacting: samples whose excess is above numerical resolution.
        strength_class, excess_class: "strong", "moderate" or "weak" by the cuts.

    Raises:
        DataError: the readout is the same for every sample, so there is no unit to measure in.
    """
    spread = effects.spread
    if not spread > 0:
        raise DataError(
            f"the readout does not vary over {len(effects.clean_N)} samples, so interactions have no scale; "
            "take more or other samples"
        )
    edges_E2, conditional_EN = effects.directed()
    conditional_NE = conditional_EN.T / spread
    main_NE = effects.main_KN[edges_E2[:, 1]].T / spread
    excess_NP = _resolved(effects.excess_PN.T / spread)
    beyond_NE = _resolved(np.abs(conditional_NE) - np.abs(main_NE))

    strength = bootstrap_columns(np.abs(conditional_NE), resamples, seed)
    excess = bootstrap_columns(np.abs(excess_NP), resamples, seed)
    p_excess_P = sign_flip_p(excess_NP, permutations, seed, max_permutations)
    p_beyond_E = sign_flip_p(beyond_NE, permutations, seed, max_permutations)

    def both(values_P: NDArray) -> NDArray:
        return np.concatenate([values_P, values_P])

    return pd.DataFrame(
        {
            "source": effects.features_K[edges_E2[:, 0]],
            "target": effects.features_K[edges_E2[:, 1]],
            "strength": strength.value,
            "strength_low": strength.low,
            "strength_high": strength.high,
            "target_effect": np.abs(main_NE).mean(axis=0),
            "beyond": beyond_NE.mean(axis=0),
            "p_beyond": p_beyond_E,
            "q_beyond": benjamini_hochberg(p_beyond_E),
            "excess": both(excess.value),
            "excess_low": both(excess.low),
            "excess_high": both(excess.high),
            "excess_mean": both(excess_NP.mean(axis=0)),
            "p_excess": both(p_excess_P),
            "q_excess": both(benjamini_hochberg(p_excess_P)),
            "n_interacting": both((excess_NP != 0).sum(axis=0)),
            "strength_class": strength_class(strength.value, strong, moderate),
            "excess_class": both(strength_class(excess.value, strong, moderate)),
        }
    )


def strength_class(strength: NDArray[np.float64], strong: float = 0.5, moderate: float = 0.2) -> NDArray[np.str_]:
    """ "strong" above `strong`, "moderate" above `moderate`, else "weak" (paper, section 5.2)."""
    return np.select([strength > strong, strength > moderate], CLASSES[:2], CLASSES[2])


@dataclass(frozen=True)
class Shares:
    """Share of edges in each class, with intervals from resampling the images."""

    strong: Interval
    moderate: Interval
    weak: Interval

    def as_dict(self) -> dict[str, dict]:
        """One entry per class, each an interval's plain values."""
        return {name: getattr(self, name).as_dict() for name in CLASSES}


def class_shares(
    effects: Effects,
    measure: str = "strength",
    strong: float = 0.5,
    moderate: float = 0.2,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Shares:
    """Strong, moderate and weak shares of all pairs; a resample of the images changes strengths and the spread alike.

    Measured pairs count for as many as they stand for (`Effects.weight_P`).

    Args:
        measure: "strength" (Eq. 7, directed edges) or "excess" (unordered pairs).
    """
    directed = measure == "strength"
    per_edge_EN = np.abs(effects.directed()[1] if directed else effects.excess_PN)
    weight_E = np.tile(effects.weight_P, 2 if directed else 1)
    weight_E /= weight_E.sum()
    n = len(effects.clean_N)
    weights_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    mean_R = weights_RN @ effects.clean_N
    variance_R = np.einsum("rn,rn->r", weights_RN, (effects.clean_N - mean_R[:, None]) ** 2) * n / (n - 1)
    spread_R = np.sqrt(variance_R)
    shares_RC = np.empty((resamples, len(CLASSES)))
    for start in range(0, resamples, 100):
        rows = slice(start, start + 100)
        with np.errstate(divide="ignore", invalid="ignore"):
            strength_RE = weights_RN[rows] @ per_edge_EN.T / spread_R[rows, None]
        shares_RC[rows] = _shares(strength_RE, weight_E, strong, moderate)
    value_C = _shares(per_edge_EN.mean(axis=1)[None] / effects.spread, weight_E, strong, moderate)[0]
    tail = (1 - confidence) / 2
    low_C, high_C = np.quantile(shares_RC, [tail, 1 - tail], axis=0)
    kind = f"{confidence:.0%} percentile bootstrap"
    columns_C4 = np.stack([value_C, low_C, high_C, shares_RC.std(axis=0, ddof=1)], axis=1).tolist()
    return Shares(*(Interval(value, low, high, n, kind, error) for value, low, high, error in columns_C4))


def _shares(strength_RE: NDArray, weight_E: NDArray, strong: float, moderate: float) -> NDArray:
    is_strong = (strength_RE > strong) @ weight_E
    above = (strength_RE > moderate) @ weight_E
    return np.stack([is_strong, above - is_strong, 1 - above], axis=1)


def _resolved(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Set what lies below numerical resolution to exactly zero, so that rounding is never an interaction."""
    return np.where(np.abs(values) < RESOLUTION, 0.0, values)
