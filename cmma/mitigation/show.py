"""What a mitigation found, as figures and headline numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cmma.figures import Curves, Figure, Line, Listing
from cmma.mitigation.comparison import METRICS
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.mitigate import OURS, REVERSED, Mitigation

_LISTED = ("object", "caption", "attribute", "relation", "all", "phrase", "statement", "recall", "doubtful",
           "described", "words", "accuracy")


def figures(found: Mitigation, config: MitigationConfig) -> tuple[Figure, ...]:
    """The held-out table of either split, the dose–response curve, and where the features lie."""
    made: list[Figure] = [_listing(found.test, config.split, "held-out images on which the model hallucinates")]
    made.append(_listing(found.test, config.plain_split, "held-out images without the bias"))
    dose = dose_response(found, config)
    if dose is not None:
        made.append(dose)
    if len(found.trigger):
        columns = ("feature", "AUROC", "low", "high", "random features", "p", "active on trigger", "active elsewhere")
        made.append(Listing(
            "Where the features lie", "AUROC of a feature's activation for the patches of the planted trigger among "
            "all patches, mean over held-out images; 0.5 is chance", columns,
            [list(row)[: len(columns)] for row in found.trigger.itertuples(index=False)],
        ))  # fmt: skip
    return tuple(made)


def _listing(test: pd.DataFrame, split: str, about: str) -> Listing:
    """Conditions by metrics: value and change in one cell."""
    rows: list[list[str | float | int | None]] = []
    part = test[test["split"] == split]
    shown = [name for name in _LISTED if (part["metric"] == name).any()]
    for condition, own in part.groupby("condition", sort=False):
        cells = own.set_index("metric")
        rows.append([str(condition), *(_cell(cells.loc[name], str(condition)) for name in shown)])
    return Listing(
        f"Hallucination mitigation, {split}", f"{about}; shares in percent, change in brackets: of rates in percent of "
        "the clean rate, of the rest in points (95% interval over images)", ("condition", *shown), rows,
    )  # fmt: skip


def _cell(row: pd.Series, condition: str) -> str | None:
    if not np.isfinite(row["value"]):
        return None
    scale = 1 if row.name == "words" else 100
    text = f"{scale * row['value']:.1f}"
    if condition == "clean" or not np.isfinite(row["change"]):
        return text
    scale = 1 if row["relative"] else scale
    moved = f"{scale * row['change']:+.1f}{'%' if row['relative'] else ''}"
    if np.isfinite(row["change_low"]):
        moved += f", {scale * row['change_low']:.1f} to {scale * row['change_high']:.1f}"
    return f"{text} ({moved})"


def dose_response(found: Mitigation, config: MitigationConfig) -> Curves | None:
    """Rate, recall and accuracy over the strength of the headline's features, on the calibration images."""
    steering = found.headline.steering
    tried = pd.DataFrame(found.headline.tried)
    if tried.empty:
        return None
    own = tried[tried["n_features"] == len(steering.features)].drop_duplicates("strength").sort_values("strength")
    lines = [
        Line(f"{metric}, {split}", *(own[f"{split}_{metric}{end}"].to_numpy() for end in ("", "_low", "_high")))
        for split, metrics in ((config.split, ("object", "recall", "accuracy")), (config.plain_split, ("recall",)))
        for metric in metrics
    ]  # fmt: skip
    return Curves(
        f"Dose and response of {len(steering.features)} features", "share, on the calibration images; object: mentions "
        "of objects that are not there", "strength s of a' = (1 - s) a", own["strength"].tolist(), lines,
    )  # fmt: skip


def summary(found: Mitigation, config: MitigationConfig) -> dict[str, Any]:
    """Headline numbers: what was chosen, and the change of every metric where the model hallucinates."""
    headline = found.headline
    part = found.test[found.test["split"] == config.split].set_index(["condition", "metric"])
    there = OURS in part.index.get_level_values(0)
    changes = {
        metric: {name: _number(part.loc[(OURS, metric), name]) for name in ("before", "value", "change", "change_low",
                                                                           "change_high", "d", "p_holm")}
        for metric in METRICS if there and (OURS, metric) in part.index
    }  # fmt: skip
    reversed_name = f"{OURS}, {REVERSED}"
    return {
        "selection": headline.steering.name.removeprefix(f"{OURS} by "), "features": list(headline.steering.features),
        "strength": headline.strength, "changes": changes,
        "object_change": changes.get("object", {}).get("change"),
        "reversed_object_change": _number(part.loc[(reversed_name, "object"), "change"]) if there else None,
        "control_object_change": {
            name: _number(part.loc[(name, "object"), "change"])
            for name in ("random features", "random direction") if there
        },
        "chosen": {choice.steering.name: choice.strength for choice in found.choices},
        "not_measured": found.not_measured, **{name: _number(value) for name, value in found.facts.items()},
    }  # fmt: skip


def _number(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain
