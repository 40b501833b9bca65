"""Reading an image of the shapes world back: which objects, with which attributes, where.

Nothing is learned. Every cell of the layout is compared with the renderer's own templates (shape × size × texture ×
colour × offset from the cell's centre × blur), and the template with the smallest squared error is the answer: the most
likely object under Gaussian noise. The image may be rendered, noisy, blurred, compressed or generated; each object says
how much of its cell the template explains, and an attribute that two templates explain equally well is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from cmma.errors import DataError
from cmma.testbed.language import RELATIONS
from cmma.testbed.render import PALETTE, signed_distance, surface
from cmma.testbed.scenes import CANVAS, CELL, COLORS, GRID, RADII, SHAPES, SIZES, TEXTURES

ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "size": SIZES, "texture": TEXTURES}
OFFSETS = np.linspace(-1.2, 1.2, 5)  # of an object from its cell's centre in pixels; rendered ones reach ±0.9
PRESENT = 250.0  # least squared contrast that an object's template explains, per pixel of its cell, three channels
BLURS = (0.0, 0.6, 1.0)  # standard deviations in pixels: the image may be softer than a rendered one
EXPLAINED = 0.4  # least share of the cell's squared contrast that an object's template explains
TELLING = 0.01  # least advantage, in the same share, of an attribute's value over the best other one
_CHUNK = 256  # images compared at once: bounds memory


@dataclass(frozen=True)
class ParsedObject:
    """One object found in an image.

    Attributes:
        shape, color, size, texture: words of the grammar, None where another value explains the cell as well.
        cell: cell of the layout (row-major, 0–8).
        x, y: centre in pixels.
        confidence: share of the cell's squared contrast, less that of the image's noise, that the template explains,
            at most 1.
    """

    shape: str | None
    color: str | None
    size: str | None
    texture: str | None
    cell: int
    x: float
    y: float
    confidence: float

    @property
    def name(self) -> str | None:
        """Colour and shape, None if one of them is."""
        return f"{self.color} {self.shape}" if self.color and self.shape else None

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID


@dataclass(frozen=True)
class ParsedScene:
    """The objects of one image in reading order."""

    objects: tuple[ParsedObject, ...]

    @property
    def relations(self) -> list[tuple[int, str, int]]:
        """Every relation that holds, as (index, relation, index); rules of `cmma.testbed.language.RELATIONS`."""
        return [
            (i, name, j)
            for i, j in permutations(range(len(self.objects)), 2)
            for name, holds in RELATIONS.items()
            if holds(self.objects[i], self.objects[j])
        ]


def parse_images(images: np.ndarray | Sequence[Image.Image]) -> list[ParsedScene]:
    """Parse images.

    Args:
        images: uint8 [N, 48, 48, 3], or PIL images (other sizes are reduced or enlarged to 48 × 48).

    Raises:
        DataError: an array of another shape or type.
    """
    if not isinstance(images, np.ndarray):
        images = np.stack([_as_array(image) for image in images]) if len(images) else np.zeros((0, CANVAS, CANVAS, 3))
    if images.shape[1:] != (CANVAS, CANVAS, 3) or (len(images) and images.dtype != np.uint8):
        raise DataError(f"the scene parser takes uint8 [N, {CANVAS}, {CANVAS}, 3], not {images.dtype} {images.shape}")
    return [scene for first in range(0, len(images), _CHUNK) for scene in _parse_chunk(images[first : first + _CHUNK])]


def parse_image(image: Image.Image | np.ndarray) -> ParsedScene:
    """Parse one image; see `parse_images`."""
    return parse_images(image[None] if isinstance(image, np.ndarray) else [image])[0]


def _as_array(image: Image.Image) -> np.ndarray:
    image = image.convert("RGB")
    return np.asarray(image if image.size == (CANVAS, CANVAS) else image.resize((CANVAS, CANVAS), Image.Resampling.BOX))


@dataclass(frozen=True)
class _Templates:
    """Objects without colour: a pixel shows coverage · (shade · colour + light) over the background.

    Attributes:
        kind: int [T, 3], indices of shape, size, texture.
        offset: float [T, 2], (x, y) of the object from the cell's centre.
        coverage, shade, light: float32 [T, 256], the latter two multiplied by the coverage, all blurred.
    """

    kind: np.ndarray
    offset: np.ndarray
    coverage: np.ndarray
    shade: np.ndarray
    light: np.ndarray


@cache
def _templates() -> _Templates:
    pixel = np.arange(CELL) + 0.5 - CELL / 2
    kinds, offsets, maps = [], [], []
    for shape, size, texture in product(range(len(SHAPES)), range(len(SIZES)), range(len(TEXTURES))):
        for dx, dy, blur in product(OFFSETS, OFFSETS, BLURS):
            x, y = np.meshgrid(pixel - dx, pixel - dy)
            coverage = np.clip(0.5 - signed_distance(shape, x, y, np.asarray(RADII[size])), 0, 1)
            shade, light = surface(np.asarray(texture), x, y)
            kinds.append((shape, size, texture))
            offsets.append((dx, dy))
            maps.append(gaussian_filter((coverage, coverage * shade, coverage * light), (0, blur, blur)))
    maps_3TP = np.asarray(maps, dtype=np.float32).reshape(len(maps), 3, -1).transpose(1, 0, 2)
    return _Templates(np.asarray(kinds), np.asarray(offsets), *maps_3TP)


def _parse_chunk(images: np.ndarray) -> Iterator[ParsedScene]:
    n = len(images)
    cells_NGPX: np.ndarray = images.astype(np.float32).reshape(n, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    cells_NGPX = cells_NGPX.reshape(n, GRID * GRID, CELL, CELL, 3)
    edge = np.ones((CELL, CELL), dtype=bool)
    edge[1:-1, 1:-1] = False  # no rendered object reaches the outermost pixels of its cell
    background_NGX = np.median(cells_NGPX[:, :, edge], axis=2)
    contrast_NGPX = (cells_NGPX - background_NGX[:, :, None, None]).reshape(n, GRID * GRID, CELL * CELL, 3)
    energy_NG: np.ndarray = (contrast_NGPX**2).sum(axis=(2, 3))
    noise_NG = _noise_energy(contrast_NGPX[:, :, edge.ravel()])
    energy_NG -= noise_NG
    row, cell = np.nonzero(energy_NG > PRESENT * CELL * CELL)
    gain_KTC = _gains(contrast_NGPX[row, cell], background_NGX[row, cell])
    share_KTC: np.ndarray = gain_KTC / energy_NG[row, cell][:, None, None]
    found: list[list[ParsedObject]] = [[] for _ in range(n)]
    for image, where, energy, share_TC in zip(row, cell, energy_NG[row, cell], share_KTC, strict=True):
        best = share_TC.max()
        if best >= EXPLAINED and best * energy >= PRESENT * CELL * CELL:
            found[image].append(_object(share_TC, int(where)))
    return (ParsedScene(tuple(objects)) for objects in found)


def _noise_energy(edge_NGEX: np.ndarray) -> np.ndarray:
    """Squared contrast that a cell of this image has without any object: [N, 1], from the median absolute deviation."""
    spread_N = 1.4826 * np.median(np.abs(edge_NGEX), axis=(1, 2, 3))
    return (3 * CELL * CELL * spread_N**2)[:, None]


def _gains(contrast_KPX: np.ndarray, background_KX: np.ndarray) -> np.ndarray:
    """How much each template in each colour lowers the squared error of a cell: float32 [K, T, colours].

    With contrast d and template t it is |d|² − |d − t|² = 2 d·t − |t|², where t = coverage · (shade · colour + light −
    background) in each channel: products of three maps with the cell and among themselves are all that is needed.
    """
    maps = _templates()
    gain_KTC = np.zeros((len(contrast_KPX), len(maps.kind), len(COLORS)), dtype=np.float32)
    square = {(a, b): (getattr(maps, a) * getattr(maps, b)).sum(axis=1) for a, b in _PAIRS}
    for channel in range(3):
        contrast_KP, color_C = contrast_KPX[:, :, channel], PALETTE[:, channel]
        shade_KT, light_KT, coverage_KT = (contrast_KP @ m.T for m in (maps.shade, maps.light, maps.coverage))
        level_K1 = background_KX[:, channel, None]
        # Constant, linear and quadratic in the colour.
        gain_KTC += (
            2 * (light_KT - level_K1 * coverage_KT)
            - square["light", "light"] + 2 * level_K1 * square["light", "coverage"]
            - level_K1**2 * square["coverage", "coverage"]
        )[:, :, None]  # fmt: skip
        linear_KT = 2 * (shade_KT - square["shade", "light"] + level_K1 * square["shade", "coverage"])
        gain_KTC += linear_KT[:, :, None] * color_C - square["shade", "shade"][:, None] * color_C**2
    return gain_KTC


_PAIRS = (
    ("light", "light"), ("light", "coverage"), ("coverage", "coverage"),
    ("shade", "light"), ("shade", "coverage"), ("shade", "shade"),
)  # fmt: skip


def _object(share_TC: np.ndarray, cell: int) -> ParsedObject:
    maps = _templates()
    variants = len(OFFSETS) ** 2 * len(BLURS)
    best_template, best_color = np.unravel_index(share_TC.argmax(), share_TC.shape)
    grid = (len(SHAPES), len(SIZES), len(TEXTURES), variants, len(COLORS))
    share = share_TC.reshape(grid).max(axis=3)  # [shape, size, texture, colour]
    words: dict[str, str | None] = {}
    for axis, name in enumerate(("shape", "size", "texture", "color")):
        of_value = np.sort(share.max(axis=tuple(other for other in range(4) if other != axis)))
        index = best_color if name == "color" else maps.kind[best_template][axis]
        words[name] = ATTRIBUTES[name][index] if of_value[-1] - of_value[-2] >= TELLING else None
    dx, dy = maps.offset[best_template]
    x, y = cell % GRID * CELL + CELL / 2 + dx, cell // GRID * CELL + CELL / 2 + dy
    return ParsedObject(**words, cell=cell, x=float(x), y=float(y), confidence=min(float(share_TC.max()), 1.0))
