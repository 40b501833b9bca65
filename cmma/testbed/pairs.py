"""Semantic image pairs: two scenes that differ in exactly one factor of one object."""

from __future__ import annotations

import numpy as np

from cmma.testbed import draws
from cmma.testbed.scenes import COLORS, GRID, SHAPES, SIZES, TEXTURES, Scenes

FACTORS = ("shape", "color", "size", "texture", "position", "presence")
_LEVELS = {"size": len(SIZES), "texture": len(TEXTURES)}


def change_one_factor(scenes: Scenes, rows: np.ndarray, factors: np.ndarray) -> Scenes:
    """Scenes in which the first object of each of `rows` differs from before in one factor.

    Args:
        scenes: N scenes, not yet in reading order, each with fewer than four objects.
        rows: int [R], the scenes to change.
        factors: int [N], index into FACTORS per scene. *Presence* adds an object that was not there; *position* moves
            the object to a free cell.
    """
    changed = scenes.take(slice(None))
    choice_R = draws.uniforms(scenes.keys[rows], purpose=20, count=1)[:, 0]
    for row, choice in zip(rows, choice_R, strict=True):
        factor = FACTORS[factors[row]]
        if factor == "presence":
            changed.count[row] += 1  # the next column already holds a drawn object in a free cell
        elif factor == "position":
            free = _telling_cells(scenes.cell[row, : scenes.count[row]])
            changed.cell[row, 0] = free[int(choice * len(free))]
        elif factor in _LEVELS:
            levels = getattr(changed, factor)
            levels[row, 0] = (levels[row, 0] + 1 + int(choice * (_LEVELS[factor] - 1))) % _LEVELS[factor]
        else:
            _change_name(changed, row, factor, choice)
    return changed


def _change_name(scenes: Scenes, row: int, factor: str, choice: float) -> None:
    """Another shape or colour for the first object that keeps the names in the scene distinct."""
    levels = getattr(scenes, factor)
    n_levels = len(SHAPES) if factor == "shape" else len(COLORS)
    others = range(1, scenes.count[row])
    taken = {(scenes.shape[row, m], scenes.color[row, m]) for m in others}
    free = []
    for level in range(n_levels):
        name = (level, scenes.color[row, 0]) if factor == "shape" else (scenes.shape[row, 0], level)
        if level != levels[row, 0] and name not in taken:
            free.append(level)
    levels[row, 0] = free[int(choice * len(free))]


def _telling_cells(cell_M: np.ndarray) -> list[int]:
    """Free cells for the first object in which it loses a relation ("left of", "above", …) that it has to another."""

    def placed(cell: int) -> list[int]:
        return [
            int(np.sign(a - b))
            for other in cell_M[1:]
            for a, b in ((cell % GRID, other % GRID), (cell // GRID, other // GRID))
        ]

    before = placed(cell_M[0])
    return [
        cell
        for cell in range(GRID * GRID)
        if cell not in cell_M and any(a != 0 and a != b for a, b in zip(before, placed(cell), strict=True))
    ]
