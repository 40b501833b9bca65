"""Is a degree distribution a power law? Discrete maximum likelihood, goodness of fit and rivals.

Clauset, Shalizi and Newman 2009 ("Power-law distributions in empirical data"), sections 3.3, 4.1 and 5, with one
restriction: the tail must hold at least half of the nodes. A free xmin can always retreat to a handful of hubs, where
anything decays like a steep power law: without the restriction half of all Erdős–Rényi graphs of 200 nodes pass.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

REJECT_BELOW = 0.1  # Clauset et al., section 4.1: rule the hypothesis out if p ≤ 0.1
ENOUGH_IN_TAIL = 50  # Broido and Clauset 2019: fewer values in the tail decide nothing
_EXPONENTS = np.arange(1.01, 8.0, 0.005)
TAIL_SHARE = 0.5  # the claim is about the network, not about its last few hubs
_LONGEST = 100_000  # synthetic values beyond it are cut; the tail there holds no observed degree


@dataclass(frozen=True)
class PowerLaw:
    """A power law x^-exponent fitted to the values from `xmin` up, and what speaks against it.

    Attributes:
        exponent: maximum-likelihood γ; standard_error: of it, for fixed `xmin`.
        xmin, n_tail, n: start of the tail, values in it, values in all (isolated nodes left out).
        distance: Kolmogorov–Smirnov distance of the tail from the fit.
        p: share of synthetic power-law data whose distance is at least as large (their own xmin refitted).
        rival: the alternative (exponential, Poisson) that fits the tail best; rival_z: Vuong's statistic, negative
            where the rival is better; rival_p: its two-sided p.
        rejected: True if p ≤ 0.1, or a rival is significantly better (p ≤ 0.1).
        verdict: the same in words, or why nothing could be decided.
    """

    exponent: float
    standard_error: float
    xmin: int
    n_tail: int
    n: int
    distance: float
    p: float
    rival: str
    rival_z: float
    rival_p: float
    rejected: bool
    verdict: str

    def as_dict(self) -> dict[str, float | int | str | bool | None]:
        """Plain values for JSON; NaN becomes None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def fit_power_law(values: ArrayLike, draws: int = 200, seed: int = 0) -> PowerLaw:
    """Fit and test a discrete power law on positive integers (degrees); zeros are left out.

    Args:
        values: [n] degrees.
        draws: synthetic data sets behind the goodness of fit; p is known to about 1/(2√draws).
    """
    data = np.asarray(values, dtype=np.int64)
    data = data[data > 0]
    if len(np.unique(data)) < 3:
        nan = math.nan
        verdict = f"not decidable: {len(np.unique(data))} distinct degrees among {len(data)} connected nodes"
        return PowerLaw(nan, nan, 0, 0, len(data), nan, nan, "none", nan, nan, False, verdict)

    exponent, xmin, distance = _fit(data)
    tail, body = data[data >= xmin], data[data < xmin]
    rng = np.random.default_rng(seed)
    synthetic = (_fit(_synthesise(rng, body, len(data), len(tail), exponent, xmin)) for _ in range(draws))
    p = (sum(other >= distance for _, _, other in synthetic) + 1) / (draws + 1)
    rival, rival_z, rival_p = _best_rival(tail, exponent, xmin)

    rejected = p <= REJECT_BELOW or (rival_z < 0 and rival_p <= REJECT_BELOW)
    if p <= REJECT_BELOW:
        verdict = f"rejected: goodness of fit p = {p:.3f}"
    elif rejected:
        verdict = f"rejected: the {rival} tail fits better (p = {rival_p:.3g})"
    elif len(tail) < ENOUGH_IN_TAIL:
        verdict = f"not decidable: only {len(tail)} nodes in the tail"
    else:
        verdict = f"not rejected: goodness of fit p = {p:.3f}"
    error = 1 / math.sqrt(len(tail) * _information(exponent, xmin))
    return PowerLaw(
        exponent, error, int(xmin), len(tail), len(data), distance, p, rival, rival_z, rival_p, bool(rejected), verdict
    )


def _fit(data: NDArray[np.int64]) -> tuple[float, int, float]:
    """(exponent, xmin, distance) with xmin at the smallest KS distance among tails of half the data or more."""
    value_U, count_U = np.unique(data, return_counts=True)
    logs_U = count_U * np.log(value_U)
    best = (math.nan, int(value_U[0]), math.inf)
    for first in range(len(value_U) - 1):
        n_tail = int(count_U[first:].sum())
        if n_tail < TAIL_SHARE * len(data):
            break
        xmin = int(value_U[first])
        likelihood = -n_tail * _log_zeta(xmin) - _EXPONENTS * logs_U[first:].sum()
        exponent = float(_EXPONENTS[likelihood.argmax()])
        observed_U = count_U[first:].cumsum() / n_tail
        expected_U = 1 - special.zeta(exponent, value_U[first:] + 1.0) / special.zeta(exponent, float(xmin))
        distance = float(np.abs(observed_U - expected_U).max())
        if distance < best[2]:
            best = (exponent, xmin, distance)
    return best


_zetas: dict[int, NDArray[np.float64]] = {}


def _log_zeta(xmin: int) -> NDArray[np.float64]:
    """log ζ(γ, xmin) on the grid of exponents, computed once per xmin."""
    if xmin not in _zetas:
        _zetas[xmin] = np.log(special.zeta(_EXPONENTS, float(xmin)))
    return _zetas[xmin]


def _synthesise(
    rng: np.random.Generator, body: NDArray, n: int, n_tail: int, exponent: float, xmin: int
) -> NDArray[np.int64]:
    """Data of the fitted law above xmin and resampled data below it, in the observed proportion."""
    from_tail = int(rng.binomial(n, n_tail / n))
    tail = power_law_draws(rng, from_tail, exponent, xmin)
    return np.concatenate([rng.choice(body, n - from_tail), tail]) if len(body) else tail


def power_law_draws(rng: np.random.Generator, n: int, exponent: float, xmin: int) -> NDArray[np.int64]:
    """`n` draws from p(x) ∝ x^-exponent, x ≥ xmin, by inverting the tail of the zeta function.

    The closed form of Clauset et al. (appendix D) starts the search; doubling and bisection make it exact.
    """
    target = special.zeta(exponent, float(xmin)) * (1 - rng.random(n))
    low, high = np.full(n, xmin), np.full(n, xmin + 1)
    while (growing := (special.zeta(exponent, high.astype(float)) >= target) & (high < _LONGEST)).any():
        low = np.where(growing, high, low)
        high = np.where(growing, np.minimum(2 * high, _LONGEST), high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        beyond = special.zeta(exponent, middle.astype(float)) >= target
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return low


def _information(exponent: float, xmin: int) -> float:
    """Fisher information of one value: the second derivative of log ζ(γ, xmin)."""
    step = 1e-3
    log_zeta = np.log(special.zeta(np.array([exponent - step, exponent, exponent + step]), float(xmin)))
    return float((log_zeta[0] - 2 * log_zeta[1] + log_zeta[2]) / step**2)


def _best_rival(tail: NDArray[np.int64], exponent: float, xmin: int) -> tuple[str, float, float]:
    """Vuong's test of the power law against each rival on the tail: (name, z, p) of the strongest rival."""
    power = -exponent * np.log(tail) - math.log(special.zeta(exponent, float(xmin)))
    results = []
    for name, log_likelihood in (("exponential", _geometric(tail, xmin)), ("Poisson", _poisson(tail, xmin))):
        ratio = power - log_likelihood
        spread = ratio.std()
        z = float(ratio.sum() / (spread * math.sqrt(len(ratio)))) if spread > 0 else 0.0
        results.append((name, z, float(2 * stats.norm.sf(abs(z)))))
    return min(results, key=lambda result: result[1])


def _geometric(tail: NDArray[np.int64], xmin: int) -> NDArray[np.float64]:
    """Log-likelihood per value of the best exponential decay from xmin: the shifted geometric, in closed form."""
    beyond = tail - xmin
    keep = beyond.mean() / (1 + beyond.mean())
    return np.log1p(-keep) + beyond * math.log(max(keep, 1e-300))


def _poisson(tail: NDArray[np.int64], xmin: int) -> NDArray[np.float64]:
    """Log-likelihood per value of the best Poisson law cut below xmin: what a random graph's degrees follow."""

    def log_likelihood(log_mean: float) -> NDArray[np.float64]:
        mean = math.exp(log_mean)
        return stats.poisson.logpmf(tail, mean) - stats.poisson.logsf(xmin - 1, mean)

    def cost(log_mean: float) -> float:
        total = -log_likelihood(log_mean).sum()
        return total if np.isfinite(total) else 1e300

    bounds = (math.log(tail.mean()) - 5, math.log(tail.mean()) + 1)
    return log_likelihood(optimize.minimize_scalar(cost, bounds=bounds, method="bounded").x)
