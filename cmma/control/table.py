"""Table 2 from measured trials: success, precision, preservation, with intervals over images, beside the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cmma.control.rates import METRICS, OVERALL, counts_of, mean_ratio
from cmma.control.run import CONDITIONS, FEATURES, Measured
from cmma.control.trials import FACTORS
from cmma.statistics.correction import holm
from cmma.statistics.effect import cohens_d
from cmma.statistics.permutation import sign_flip_p


def trial_frame(measured: Sequence[Measured], target_preferred: Sequence[bool]) -> pd.DataFrame:
    """One row per trial, condition and draw, with the counts behind `METRICS`."""
    return pd.DataFrame([
        {
            "key": each.trial.sample.key, "dimension": each.trial.dimension, "factor": each.trial.factor,
            "source": each.trial.source, "target": each.trial.target, "condition": each.condition, "draw": each.draw,
            **counts_of(each.change), "target_preferred": int(preferred),
        }
        for each, preferred in zip(measured, target_preferred, strict=True)
    ])  # fmt: skip


def table_two(trials: pd.DataFrame, n_resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """One row per group (dimension, factor, overall), condition and metric: value, interval, p and d against features.

    `overall` is the mean over dimensions, as in the paper's table. Draws of a control are averaged within an image.
    """
    rows: list[dict[str, Any]] = []
    dimensions = list(dict.fromkeys(trials["dimension"]))
    factors = [factor for factor in dict.fromkeys(trials["factor"]) if FACTORS[factor] == "attribute"]
    groups = [("dimension", [name]) for name in dimensions] + [("factor", [name]) for name in factors]
    for column, names in [*groups, ("dimension", dimensions)]:
        label = names[0] if len(names) == 1 and (column, names) in groups else OVERALL
        for condition in CONDITIONS:
            some = trials[trials["condition"] == condition]
            for metric, (numerator, denominator) in METRICS.items():
                parts = [some[some[column] == name] for name in names]
                interval = mean_ratio(parts, numerator, denominator, n_resamples, seed)
                rows.append({"group": label, "condition": condition, "metric": metric, **interval.as_dict()})
        if label == OVERALL:
            break
    return pd.DataFrame(rows)


def against_controls(trials: pd.DataFrame, n_permutations: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Success with the features against each other condition, image by image: difference, d, p and Holm's p."""
    rows = []
    for dimension, some in trials.groupby("dimension", sort=False):
        rate = some.groupby(["condition", "key"])["success"].mean().unstack("condition")
        for condition in CONDITIONS[1:]:
            difference = (rate[FEATURES] - rate[condition]).to_numpy()
            rows.append({
                "dimension": dimension, "against": condition, "n": len(difference), "difference": difference.mean(),
                "d": float(cohens_d(rate[FEATURES], rate[condition])) if len(difference) > 1 else float("nan"),
                "p": float(sign_flip_p(difference, n_permutations, seed)),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"])) if len(table) else table
