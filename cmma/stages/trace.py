"""trace: where a restored activation brings the right answer back."""

from __future__ import annotations

from typing import Any

import torch

from cmma.causal.tracing import trace
from cmma.models import load_model
from cmma.stages.runner import Stage
from cmma.stages.splits import load_split


def run(stage: Stage) -> dict[str, Any]:
    """Layers × positions map of recovered effect; summary: counts, total effect, the strongest cell."""
    config = stage.config.trace
    samples = load_split(stage.parents["prepare-data"], config.split)
    result = trace(load_model(stage.config.model, stage.device), samples, config)
    cells = result.summary(seed=config.seed)
    stage.artifact.write_table("trace.parquet", cells)
    stage.artifact.write_table("scores.parquet", result.to_frame())
    stage.artifact.write_tensors("trace.safetensors", {
        "score_CRG": torch.from_numpy(result.score_CRG), "low_C": torch.from_numpy(result.low_C),
        "high_C": torch.from_numpy(result.high_C),
    })
    strongest = cells.loc[cells["effect"].abs().idxmax()] if cells["effect"].notna().any() else None
    return {
        "method": config.method, "module": config.module, **_finite(result.totals()),
        "rows": list(result.rows), "groups": list(result.groups),
        "strongest": None if strongest is None else f"{strongest['row']} × {strongest['group']}",
        "strongest_recovery": None if strongest is None else float(strongest["recovery"]),
    }


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """NaN (no case was usable) has no JSON form."""
    return {name: None if value != value else value for name, value in numbers.items()}
