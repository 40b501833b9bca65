"""constraint_window: how wide a window of layers, restored at a replaced constraint, brings the answer back.

MultimodalCausalTrace (Basu et al. 2024). The visual constraint of a question is replaced by another of as many tokens,
on the same image, and what a module adds in a window of layers is copied back from the clean run, at the constraint's
tokens, at the question's other words, or at its last token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.modules import HEADS, module_sites, window
from cmma.causal.positions import CONSTRAINT, position_groups
from cmma.causal.queries import replacement_contrasts
from cmma.causal.readout import make_readout
from cmma.causal.result import PatchResult, recovery_intervals
from cmma.causal.tracing import chosen_groups, contrast_cases, restore_cells
from cmma.console import say
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.figures import Curves, Figure, Line, Listing
from cmma.models.base import MultimodalModel

NAMES = {"one": "one constraint", "two": "two constraints"}
COLUMNS = ("constraints", "group", "width", "layer", "recovery", "low", "high", "n")


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Recovery by layer for every width; the layer of a width is chosen on half of the images and measured on the rest.

    Raises:
        ConfigError: a model that answers no questions, or a module that has no windows.
        DataError: samples without the counterfactual sets.
    """
    if model.kind != "generative":
        raise ConfigError(f"trace.method=constraint_window replaces words of questions; {model.spec.name} answers none")
    if config.module in HEADS:
        raise ConfigError(f"trace.method=constraint_window restores whole layers, not trace.module={config.module}")
    stream = config.stream or model.streams[0]
    sites = module_sites(model, stream, config.module)
    widths = _widths(config, len(sites), f"{stream} stream of {model.spec.name}")
    rows = {
        f"width {width}, layer {layer}": tuple(sites[slice(*window(layer, width, len(sites)))])
        for width in widths for layer in range(len(sites))
    }  # fmt: skip

    tables: dict[str, pd.DataFrame] = {}
    summary: dict[str, Any] = {"method": config.method, "module": config.module, "widths": widths}
    best, figures, tensors = [], [], {}
    for name in ("one", "two"):
        if sets := getattr(config.constraint_window, name):
            result = _trace(model, samples, replace(config, stream=stream), sets, rows)
            cells = _cells(result, config.seed)
            found = _best(result, NAMES[name], config.seed)
            tables |= {f"{name}_constraint": cells, f"{name}_scores": result.to_frame()}
            tensors[f"{name}_score_CRG"] = torch.from_numpy(result.score_CRG)
            summary[name] = {"sets": sets, **result.totals(config.seed), "smallest_width": _smallest(found, config)}
            best += found
            figures += _curves(result, cells, widths, f"{NAMES[name]} ({', '.join(sets)})")
    tables["best"] = pd.DataFrame(best, columns=list(COLUMNS))
    return Findings(summary, tables, (*figures, _listing(best)), tensors)


def _widths(config: TraceConfig, depth: int, where: str) -> list[int]:
    asked = sorted(set(config.constraint_window.widths))
    fitting = [width for width in asked if width <= depth]
    if not fitting:
        raise ConfigError(f"trace.constraint_window.widths are all above {depth}, the depth of the {where}")
    if fitting != asked:
        say(f"widths {', '.join(map(str, asked[len(fitting) :]))} left out: the {where} has {depth} layers")
    return fitting


def _trace(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, sets: Sequence[str],
    rows: dict[str, tuple[str, ...]],
) -> PatchResult:  # fmt: skip
    """Restore every window at every group; questions of all the sets, as many of each."""
    readout = make_readout(model, config.readout, "logit_difference")
    share = -(-config.max_samples // len(sets))
    contrasts = [contrast for kind in sets for contrast in replacement_contrasts(samples, kind)[:share]]
    cases = contrast_cases(model, contrasts, readout)
    found = [
        position_groups(model, clean, corrupt, config.stream, "none", CONSTRAINT)
        for clean, corrupt in zip(cases.clean, cases.corrupt, strict=True)
    ]
    groups = chosen_groups(found, config.positions, f"{config.stream} stream of {model.spec.name}")
    return restore_cells(model, cases, rows, groups, readout, config)


def _cells(result: PatchResult, seed: int) -> pd.DataFrame:
    """`PatchResult.summary` with the width and the layer of each row."""
    cells = result.summary(seed=seed)
    place = cells["row"].str.extract(r"width (?P<width>\d+), layer (?P<layer>\d+)").astype(int)
    return pd.concat([place, cells.drop(columns="row")], axis=1)


def _best(result: PatchResult, name: str, seed: int) -> list[tuple[Any, ...]]:
    """Per group and width: the layer of largest mean effect on every second image, its recovery on the others."""
    effect_NRG, span_N = result.effect_NRG, result.span_N
    places = [tuple(map(int, re.findall(r"\d+", row))) for row in result.rows]
    found = []
    for index, group in enumerate(result.groups):
        present = np.flatnonzero(np.isfinite(effect_NRG[:, 0, index]))
        chosen, measured = present[::2], present[1::2]
        for width in dict.fromkeys(width for width, _ in places):
            rows = [row for row, place in enumerate(places) if place[0] == width]
            if not len(measured):
                continue
            row = rows[int(effect_NRG[chosen][:, rows, index].mean(axis=0).argmax())]
            value, low, high = recovery_intervals(effect_NRG[measured][:, [row], index], span_N[measured], seed=seed)
            interval = (float(value[0]), float(low[0]), float(high[0]))
            found.append((name, group, width, places[row][1], *interval, len(measured)))
    return found


def _smallest(best: Sequence[tuple[Any, ...]], config: TraceConfig) -> dict[str, dict[str, int | None]]:
    """Group → share → smallest width whose recovery reaches it; None if none does."""
    return {
        group: {
            f"{share:.0%}": next((row[2] for row in best if row[1] == group and row[4] >= share), None)
            for share in config.constraint_window.shares
        }
        for group in dict.fromkeys(row[1] for row in best)
    }


def _curves(result: PatchResult, cells: pd.DataFrame, widths: Sequence[int], title: str) -> list[Figure]:
    """Recovery over layers, a line per width, for every position group."""
    figures: list[Figure] = []
    for group in result.groups:
        lines = []
        for width in widths:
            at = cells[(cells["group"] == group) & (cells["width"] == width)].sort_values("layer")
            bounds = (at[column].to_numpy(float) for column in ("recovery", "recovery_low", "recovery_high"))
            lines.append(Line(f"{width} layers" if width > 1 else "1 layer", *bounds))
        figures.append(Curves(
            title=f"{title}: windows restored at {group}", about="recovered share of the readout",
            x_label="centre of the window", x=list(range(cells["layer"].max() + 1)), lines=lines, n=len(result.images),
        ))  # fmt: skip
    return figures


def _listing(best: Sequence[tuple[Any, ...]]) -> Listing:
    return Listing(
        title="best window of each width", columns=list(COLUMNS), rows=[list(row) for row in best],
        about="layer chosen on every second image, recovery with 95% BCa interval on the others",
    )  # fmt: skip
