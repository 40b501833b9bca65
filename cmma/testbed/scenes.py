"""What a scene of the shapes world is: its words, its layout, and N scenes held as arrays.

A scene has one to four objects (shape × colour × size × texture) in distinct cells of a 3×3 layout. No two objects of a
scene share both colour and shape, so "the red circle" is always unique. Objects are kept in reading order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted")

GRID = 3  # cells per side
CELL = 16  # pixels
CANVAS = GRID * CELL
RADII = (4.4, 6.6)  # small, large: no shape reaches further than this from its centre, in pixels
ROOM = CELL / 2 - 0.5 - max(RADII)  # of a centre from its cell's centre; half a pixel is left for the soft edge
MAX_OBJECTS = 4


@dataclass(frozen=True)
class SceneObject:
    """One object: its factors as words, its cell (row-major, 0–8) and its centre in pixels."""

    shape: str
    color: str
    size: str
    texture: str
    cell: int
    x: float
    y: float
    visible: bool

    @property
    def name(self) -> str:
        """Colour and shape: unique within a scene."""
        return f"{self.color} {self.shape}"

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID


Scene = tuple[SceneObject, ...]
"""The objects of one image in reading order."""


@dataclass
class Scenes:
    """N scenes as arrays; columns beyond `count` are unused. Attribute arrays hold indices into the word tuples.

    Attributes:
        count: int [N], number of objects.
        shape, color, size, texture, cell: int [N, 4].
        jitter: float [N, 4, 2], offset (x, y) from the cell's centre in units of the free room, in [−1, 1].
        visible: bool [N, 4].
        keys: uint64 [N], source of the background and the noise.
    """

    count: np.ndarray
    shape: np.ndarray
    color: np.ndarray
    size: np.ndarray
    texture: np.ndarray
    cell: np.ndarray
    jitter: np.ndarray
    visible: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: np.ndarray | slice) -> Scenes:
        """The scenes at `rows`, as copies."""
        return Scenes(*(getattr(self, f.name)[rows].copy() for f in fields(self)))

    @property
    def present(self) -> np.ndarray:
        """bool [N, 4]: which columns hold an object."""
        return np.arange(MAX_OBJECTS) < self.count[:, None]

    def centres(self, rows: int | slice | np.ndarray = slice(None)) -> np.ndarray:
        """Object centres (x, y) in pixels: [..., 4, 2]; the same for a small and a large object."""
        cell = self.cell[rows]
        return np.stack([cell % GRID, cell // GRID], axis=-1) * CELL + CELL / 2 + self.jitter[rows] * ROOM

    def in_reading_order(self) -> Scenes:
        """The same scenes with their objects sorted by cell."""
        order = np.argsort(np.where(self.present, self.cell, GRID * GRID), axis=1, kind="stable")
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("shape", "color", "size", "texture", "cell", "visible"):
            arrays[name] = np.take_along_axis(arrays[name], order, axis=1)
        arrays["jitter"] = np.take_along_axis(self.jitter, order[:, :, None], axis=1)
        return Scenes(**arrays)

    def scene(self, row: int) -> Scene:
        """Scene `row` as objects with words."""
        centre_MX = self.centres(row)
        return tuple(
            SceneObject(
                SHAPES[self.shape[row, m]], COLORS[self.color[row, m]], SIZES[self.size[row, m]],
                TEXTURES[self.texture[row, m]], int(self.cell[row, m]), float(centre_MX[m, 0]),
                float(centre_MX[m, 1]), bool(self.visible[row, m]),
            )
            for m in range(self.count[row])
        )  # fmt: skip


def scenes_of(objects: Sequence[Sequence[Mapping[str, Any]]], keys: Sequence[int]) -> Scenes:
    """Scenes from the objects of samples (`meta["objects"]`), in the order given; `keys` draw background and noise."""
    n = len(objects)
    filled = Scenes(
        count=np.array([len(some) for some in objects]), jitter=np.zeros((n, MAX_OBJECTS, 2)),
        visible=np.ones((n, MAX_OBJECTS), dtype=bool), keys=np.array(keys, dtype=np.uint64),
        **{name: np.zeros((n, MAX_OBJECTS), dtype=int) for name in ("shape", "color", "size", "texture", "cell")},
    )  # fmt: skip
    words = {"shape": SHAPES, "color": COLORS, "size": SIZES, "texture": TEXTURES}
    for row, some in enumerate(objects):
        for column, thing in enumerate(some):
            for name, known in words.items():
                getattr(filled, name)[row, column] = known.index(thing[name])
            filled.cell[row, column], filled.visible[row, column] = thing["cell"], thing["visible"]
            offset_X = np.array([thing["x"], thing["y"]]) - filled.centres(row)[column]
            filled.jitter[row, column] = offset_X / ROOM
    return filled
