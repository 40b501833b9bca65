"""Figures as plain data: what an analysis wants seen, free of how it is drawn. The report draws them.

A stage writes them to `figures.json` beside its tables; nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A matrix of signed values, such as layers × positions.

    Attributes:
        title: what was done ("semantic pair: restored residual stream"). about: what a cell is, with its unit.
        value_RC, low_RC, high_RC: cells and their interval; NaN where there is none.
        rows, columns: labels; row 0 is drawn at the bottom. row_label: what a row is.
        kind: what the interval is. n: samples behind a cell.
    """

    title: str
    about: str
    value_RC: Any
    rows: Sequence[str]
    columns: Sequence[str]
    low_RC: Any = None
    high_RC: Any = None
    row_label: str = "layer"
    kind: str = "95% CI"
    n: int | None = None


@dataclass(frozen=True)
class Line:
    """One line of `Curves`: values over x with their interval, NaN where there is none."""

    name: str
    value_X: Any
    low_X: Any = None
    high_X: Any = None


@dataclass(frozen=True, eq=False)
class Curves:
    """Lines over a common axis, such as effects over layers or doses."""

    title: str
    about: str
    x_label: str
    x: Sequence[float]
    lines: Sequence[Line]
    kind: str = "95% CI"
    n: int | None = None


@dataclass(frozen=True)
class Listing:
    """A small table: cells are numbers, texts or None (not measured)."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]


@dataclass(frozen=True)
class Gallery:
    """Rows of images with captions. `images`: (file in the artifact, caption), row by row."""

    title: str
    about: str
    images: Sequence[Sequence[tuple[str, str]]] = field(default_factory=list)


Figure = HeatMap | Curves | Listing | Gallery
_TYPES: dict[str, type[Any]] = {kind.__name__: kind for kind in (HeatMap, Curves, Listing, Gallery)}


def to_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Plain lists and numbers; what is not finite becomes null."""
    return [{"figure": type(figure).__name__, **_plain(asdict(figure))} for figure in figures]


def from_json(found: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What `to_json` wrote, with arrays and NaN restored."""
    figures: list[Figure] = []
    for each in found:
        given = {name: _array(name, value) for name, value in each.items() if name != "figure"}
        if each["figure"] == "Curves":
            given["lines"] = [Line(**{name: _array(name, v) for name, v in line.items()}) for line in given["lines"]]
        figures.append(_TYPES[each["figure"]](**given))
    return figures


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _array(name: str, value: Any) -> Any:
    return np.array(value, dtype=float) if value is not None and name.endswith(("_RC", "_X")) else value
