"""noise, semantic_pair, token_replacement: restore clean activations cell by cell, over layers × position groups."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.result import PatchResult
from cmma.causal.tracing import trace
from cmma.data.samples import Sample
from cmma.figures import HeatMap
from cmma.models.base import MultimodalModel

MODULES = {"residual": "residual stream", "mlp": "MLP output", "attention": "attention output"}


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Layers × positions map of recovered effect; summary: counts, total effect, the strongest cell."""
    result = trace(model, samples, config)
    cells = result.summary(seed=config.seed)
    strongest = cells.loc[cells["effect"].abs().idxmax()] if cells["effect"].notna().any() else None
    return Findings(
        summary={
            "method": config.method, "module": config.module, **result.totals(),
            "rows": list(result.rows), "groups": list(result.groups),
            "strongest": None if strongest is None else f"{strongest['row']} × {strongest['group']}",
            "strongest_recovery": None if strongest is None else float(strongest["recovery"]),
        },
        tables={"trace": cells, "scores": result.to_frame()},
        tensors={
            "score_CRG": torch.from_numpy(result.score_CRG), "low_C": torch.from_numpy(result.low_C),
            "high_C": torch.from_numpy(result.high_C),
        },
        figures=(recovery_map(result, cells, f"{config.method.replace('_', ' ')}: restored {MODULES[config.module]}"),),
    )  # fmt: skip


def recovery_map(result: PatchResult, cells: pd.DataFrame, title: str) -> HeatMap:
    """Recovered share of the readout, rows × position groups, with its interval."""
    groups = sorted(result.groups, key=_place)

    def grid(column: str) -> np.ndarray:
        return cells.pivot(index="row", columns="group", values=column).loc[list(result.rows), groups].to_numpy(float)

    return HeatMap(
        title=title, about=f"recovered share of the {result.readout.replace('_', ' ')}", value_RC=grid("recovery"),
        rows=[_layer_of(row, index) for index, row in enumerate(result.rows)], columns=groups,
        low_RC=grid("recovery_low"), high_RC=grid("recovery_high"), n=len(result.images),
    )  # fmt: skip


def _place(group: str) -> tuple[int, str, int]:
    """Order of the columns: the image's parts as they are named, then the words up to the last one."""
    word = re.fullmatch(r"last(?:-(\d+))?", group)
    return (1, "", -int(word[1] or 0)) if word else (0, group, 0)


def _layer_of(row: str, index: int) -> str:
    number = re.search(r"\d+", row)
    return number.group() if number else str(index)
