"""One-way analysis of variance with its effect size, and the pairs that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Anova:
    """F(df_between, df_within) of one factor; η² is the share of variance that lies between the groups."""

    f: float
    p: float
    df_between: int
    df_within: int
    eta_squared: float

    def as_dict(self) -> dict[str, float | int]:
        """Plain values for JSON or a table row."""
        return asdict(self)

    def __str__(self) -> str:
        return f"F({self.df_between}, {self.df_within}) = {self.f:.4g}, p = {self.p:.3g}, η² = {self.eta_squared:.3f}"


def one_way_anova(groups: Mapping[str, ArrayLike]) -> Anova:
    """One-way ANOVA over named groups of independent values (Table 1: five models × five seeds gives F(4, 20))."""
    samples = [np.asarray(values, dtype=np.float64) for values in groups.values()]
    f, p = stats.f_oneway(*samples)
    pooled = np.concatenate(samples)
    total = ((pooled - pooled.mean()) ** 2).sum()
    between = sum(len(sample) * (sample.mean() - pooled.mean()) ** 2 for sample in samples)
    eta_squared = float(between / total) if total > 0 else float("nan")
    return Anova(float(f), float(p), len(samples) - 1, len(pooled) - len(samples), eta_squared)


def tukey(groups: Mapping[str, ArrayLike], confidence: float = 0.95) -> pd.DataFrame:
    """Tukey's honestly significant differences, one row per pair.

    Returns:
        Columns `a, b, difference` (mean a − mean b), `low, high` (simultaneous interval), `p` (family-wise).
    """
    names = list(groups)
    result = stats.tukey_hsd(*(np.asarray(values, dtype=np.float64) for values in groups.values()))
    interval = result.confidence_interval(confidence)
    rows = [
        (names[i], names[j], result.statistic[i, j], interval.low[i, j], interval.high[i, j], result.pvalue[i, j])
        for i, j in combinations(range(len(names)), 2)
    ]
    return pd.DataFrame(rows, columns=["a", "b", "difference", "low", "high", "p"])
