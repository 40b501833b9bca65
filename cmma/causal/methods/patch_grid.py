"""noise, semantic_pair, token_replacement: restore clean activations cell by cell, over layers × position groups."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.patch_maps import patch_maps
from cmma.causal.result import PatchResult
from cmma.causal.tracing import trace
from cmma.data.samples import Sample
from cmma.figures import HeatMap
from cmma.models.base import MultimodalModel

MODULES = {
    "residual": "residual stream", "mlp": "MLP output", "attention": "attention output",
    "self_attention": "self-attention output", "cross_attention": "cross-attention output", "head": "attention head",
    "cross_head": "cross-attention head",
}  # fmt: skip


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Layers × positions map of recovered effect (of single heads: layers × heads, one map per position group).

    With `trace.image_positions=each` also maps of single patches over the first images.

    Summary: counts, total effect, the strongest cell.
    """
    result = trace(model, samples, config)
    gallery, pictures = patch_maps(result, samples)
    cells = result.summary(seed=config.seed)
    strongest = cells.loc[cells["effect"].abs().idxmax()] if cells["effect"].notna().any() else None
    return Findings(
        summary={
            "method": config.method, "module": config.module, **result.totals(config.seed),
            "rows": list(result.rows), "groups": list(result.groups),
            "strongest": None if strongest is None else f"{strongest['row']} × {strongest['group']}",
            "strongest_recovery": None if strongest is None else float(strongest["recovery"]),
        },
        tables={"trace": cells, "scores": result.to_frame()},
        tensors={
            "score_CRG": torch.from_numpy(result.score_CRG), "low_C": torch.from_numpy(result.low_C),
            "high_C": torch.from_numpy(result.high_C),
        },
        figures=(
            *recovery_maps(result, cells, f"{config.method.replace('_', ' ')}: restored {MODULES[config.module]}"),
            *gallery,
        ),
        images=pictures,
    )  # fmt: skip


def recovery_maps(result: PatchResult, cells: pd.DataFrame, title: str) -> tuple[HeatMap, ...]:
    """The map of a trace; of one whose rows are single heads ("….heads.3"), a map of layers × heads per group."""
    if not all(re.fullmatch(r".*heads\.\d+", row) for row in result.rows):
        return (recovery_map(result, cells, title),)
    named = zip(*(row.rsplit(".", 1) for row in result.rows), strict=True)
    layers, heads = (list(dict.fromkeys(names)) for names in named)
    maps = []
    for group in result.groups:
        values = cells[cells["group"] == group].set_index("row")
        low, value, high = (
            values[column].loc[list(result.rows)].to_numpy(float).reshape(len(layers), len(heads))
            for column in ("recovery_low", "recovery", "recovery_high")
        )
        maps.append(HeatMap(
            title=f"{title}, {group}", about=_about(result), value_RC=value, low_RC=low, high_RC=high,
            rows=[_layer_of(layer, index) for index, layer in enumerate(layers)],
            columns=[f"head {head}" for head in heads], n=len(result.images),
        ))  # fmt: skip
    return tuple(maps)


def recovery_map(result: PatchResult, cells: pd.DataFrame, title: str) -> HeatMap:
    """Recovered share of the readout, rows × position groups, with its interval."""
    groups = sorted(result.groups, key=_place)

    def grid(column: str) -> np.ndarray:
        return cells.pivot(index="row", columns="group", values=column).loc[list(result.rows), groups].to_numpy(float)

    return HeatMap(
        title=title, about=_about(result), value_RC=grid("recovery"),
        rows=[_layer_of(row, index) for index, row in enumerate(result.rows)], columns=groups,
        low_RC=grid("recovery_low"), high_RC=grid("recovery_high"), n=len(result.images),
    )  # fmt: skip


def _about(result: PatchResult) -> str:
    return f"recovered share of the {result.readout.replace('_', ' ')}"


def _place(group: str) -> tuple[int, str, int]:
    """Order of the columns: the image's parts as they are named, then the words up to the last one."""
    word = re.fullmatch(r"last(?:-(\d+))?", group)
    return (1, "", -int(word[1] or 0)) if word else (0, group, 0)


def _layer_of(row: str, index: int) -> str:
    number = re.search(r"\d+", row)
    return number.group() if number else str(index)
