"""Rates of trials: counts that are summed over images before they are divided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cmma.control.scoring import Change
from cmma.statistics.bootstrap import Interval, bootstrap_statistic

RATES = {
    "success": ("success", "trials"), "precision": ("success", "changed"),
    "precision_without_positions": ("success", "changed_in_place"), "preservation": ("kept", "others"),
}
"""Rate → (numerator, denominator), of `counts_of`.

precision: of all factors that changed, those that were to change. precision_without_positions: moves not counted.
preservation: of all factors that were to stay, those that did.
"""
METRICS = {**RATES, "target_preferred": ("target_preferred", "trials")}
"""`RATES`, and how often the encoder finds the result closer to the text of the scene as it should become than to the
text of the scene as it was."""
OVERALL = "overall"


def counts_of(change: Change) -> dict[str, int]:
    """The counts of one trial behind `RATES`."""
    changed = change.success + change.unintended
    return {"trials": 1, "success": int(change.success), "changed": changed,
            "changed_in_place": changed - change.moved, "kept": change.kept, "others": change.others}  # fmt: skip


def mean_ratio(
    parts: Sequence[pd.DataFrame], numerator: str, denominator: str, n_resamples: int, seed: int
) -> Interval:
    """Mean over groups of Σ numerator / Σ denominator; images (column `key`) are resampled, each with its trials."""
    keys = list(dict.fromkeys(key for part in parts for key in part["key"]))
    sums = [part.groupby("key")[[numerator, denominator]].sum().reindex(keys, fill_value=0) for part in parts]
    columns = [table[name].to_numpy(float) for table in sums for name in (numerator, denominator)]

    def statistic(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        totals = [column.sum(axis) for column in columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [top / bottom for top, bottom in zip(totals[::2], totals[1::2], strict=True)]
        return np.mean(ratios, axis=0)

    return bootstrap_statistic(statistic, *columns, n_resamples=n_resamples, seed=seed)
