"""Size of a difference, in standard deviations."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def cohens_d(a: ArrayLike, b: ArrayLike, paired: bool = False, axis: int = -1) -> NDArray[np.float64]:
    """Cohen's d of `a` over `b` (paper, Eq. 12), vectorised over the other axes.

    Unpaired: (mean a − mean b) / s, s the pooled standard deviation (ddof 1): the paper's d, also the one to
    report for paired designs that are to be compared with unpaired ones. Paired: d_z = mean(a − b) / sd(a − b),
    which is the paired t statistic over √n and grows as the pairs correlate (Lakens 2013); the two are not on
    one scale. No spread gives 0 for no difference, else ±inf.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = a.mean(axis) - b.mean(axis)
    if paired:
        spread = (a - b).std(axis, ddof=1)
    else:
        n_a, n_b = a.shape[axis], b.shape[axis]
        spread = np.sqrt(((n_a - 1) * a.var(axis, ddof=1) + (n_b - 1) * b.var(axis, ddof=1)) / (n_a + n_b - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / spread)[()]
