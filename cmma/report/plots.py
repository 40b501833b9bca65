"""Draw the figures that stages leave as data (`cmma.figures`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from cmma.figures import Curves, Gallery, HeatMap, Line, Listing
from cmma.report import figures
from cmma.report.images import data_uri
from cmma.report.inputs import Shown


def draw(shown: Shown) -> dict[str, Any]:
    """What the page needs of one figure: its words, drawings and, of a listing or gallery, its cells."""
    figure = shown.figure
    context: dict[str, Any] = {"title": figure.title, "about": figure.about, "n": getattr(figure, "n", None),
               "artifact": shown.artifact, "drawings": [], "listing": None, "gallery": []}
    match figure:
        case HeatMap():
            context["drawings"] = _heat_map(figure)
        case Curves():
            caption = f"band: {figure.kind}" if any(line.low_X is not None for line in figure.lines) else ""
            context["drawings"] = [(figures.curves(figure.x, figure.lines, figure.x_label), caption)]
        case Listing():
            context["listing"] = {"columns": figure.columns, "rows": [[_cell(v) for v in row] for row in figure.rows]}
        case Gallery():
            context["gallery"] = [
                [(data_uri(shown.images[name]), caption) for name, caption in row] for row in figure.images
            ]
    return context


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}".replace("-", "−") if isinstance(value, float) else str(value)


def _heat_map(trace: HeatMap) -> list[tuple[Markup, str]]:
    """The map, and the profile of the column of its peak."""
    value_RC = np.asarray(trace.value_RC, dtype=float)
    bounds = None if trace.low_RC is None or trace.high_RC is None else (trace.low_RC, trace.high_RC)

    def title(row: int, column: int) -> str:
        text = f"{trace.row_label} {trace.rows[row]}, {trace.columns[column]}: {value_RC[row, column]:.3g}"
        return text if bounds is None else f"{text} [{bounds[0][row, column]:.3g}, {bounds[1][row, column]:.3g}]"

    titles = [[title(row, column) for column in range(len(trace.columns))] for row in range(len(trace.rows))]
    drawn = [(figures.heat_map(value_RC, trace.rows, trace.columns, trace.row_label, titles), "")]
    numbered = all(row.lstrip("-").isdigit() for row in trace.rows)
    if numbered and len(trace.rows) > 1 and np.isfinite(value_RC).any():
        best = int(np.argmax(np.max(np.abs(np.nan_to_num(value_RC)), axis=0)))
        low_R, high_R = (None, None) if bounds is None else (np.asarray(side)[:, best] for side in bounds)
        line = Line(trace.columns[best], value_RC[:, best], low_R, high_R)
        profile = figures.curves([float(row) for row in trace.rows], [line], trace.row_label)
        band = "" if bounds is None else f"; band: {trace.kind}"
        drawn.append((profile, f"at {trace.columns[best]}, the column of the peak{band}"))
    return drawn
