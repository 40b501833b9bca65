"""Drawing scenes: anti-aliased shapes from signed distances, and exact object masks.

Everything is vectorised over scenes. An object never leaves its 16-pixel cell, so masks are disjoint by construction.
"""

from __future__ import annotations

import math

import numpy as np

from cmma.testbed import draws
from cmma.testbed.scenes import CANVAS, CELL, GRID, RADII, SHAPES, Scenes

PALETTE = np.array(  # one row per word of scenes.COLORS
    [[224, 48, 48], [48, 176, 64], [56, 88, 232], [236, 212, 48], [160, 56, 192], [48, 204, 212]], dtype=np.float32
)
HIDDEN_CONTRAST = 0.006  # of the difference to the background: about one grey level
NOISE_SD = 5.0  # grey levels
_STAR_INNER = 0.45
_SIN36, _COS36 = math.sin(math.pi / 5), math.cos(math.pi / 5)


def _half_plane_polygon(x: np.ndarray, y: np.ndarray, inradius: np.ndarray) -> np.ndarray:
    """Upward equilateral triangle around its centroid: the largest of three half-plane distances."""
    side = math.sqrt(3) / 2
    return np.maximum(y, side * np.abs(x) - y / 2) - inradius


def signed_distance(shape: int, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Distance in pixels to the outline of a shape of radius r, negative inside; x right, y down from the centre."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == 0:  # circle
        return np.hypot(x, y) - r
    if shape == 1:  # square
        return np.maximum(ax, ay) - 0.84 * r
    if shape == 2:  # triangle of circumradius 1.1 r, moved so that its bounding box is centred
        return _half_plane_polygon(x, y - 0.275 * r, 0.55 * r)
    if shape == 3:  # five-pointed star: fold the plane into one tenth, then one straight edge
        angle = np.mod(np.arctan2(x, -y), 2 * math.pi / 5)
        angle = np.minimum(angle, 2 * math.pi / 5 - angle)
        rho = np.hypot(x, y)
        along, across = rho * np.cos(angle), rho * np.sin(angle)
        tip_x, inner_x, inner_y = r, _STAR_INNER * r * _COS36, _STAR_INNER * r * _SIN36
        normal_x, normal_y = inner_y, tip_x - inner_x
        return ((along - tip_x) * normal_x + across * normal_y) / np.hypot(normal_x, normal_y)
    if shape == 4:  # cross: two bars
        length, width = 0.94 * r, 0.33 * r
        return np.minimum(np.maximum(ax - length, ay - width), np.maximum(ax - width, ay - length))
    return np.abs(np.hypot(x, y) - 0.74 * r) - 0.24 * r  # ring


def analytic_area(shape: int, r: float) -> float:
    """Area of a shape in square pixels, from its geometry."""
    return (
        math.pi * r**2,
        (2 * 0.84 * r) ** 2,
        3 * math.sqrt(3) / 4 * (1.1 * r) ** 2,
        5 * r * (_STAR_INNER * r) * _SIN36,
        8 * (0.94 * r) * (0.33 * r) - 4 * (0.33 * r) ** 2,
        math.pi * ((0.98 * r) ** 2 - (0.50 * r) ** 2),
    )[shape]


def _background(keys_N: np.ndarray) -> np.ndarray:
    """A grey level per scene with a slight linear gradient: float32 [N, 48, 48]."""
    level_ND = draws.uniforms(keys_N, purpose=10, count=3).astype(np.float32)
    axis = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    level, across, down = (level_ND[:, i, None, None] - 0.5 for i in range(3))
    return 112 + 24 * level + 12 * (across * axis[None, None, :] + down * axis[:, None])


def _noise(keys_N: np.ndarray) -> np.ndarray:
    """Independent noise of standard deviation NOISE_SD, sums of two uniform bytes: float32 [N, 48, 48, 3]."""
    n_bytes = CANVAS * CANVAS * 3 * 2
    bytes_NB = draws.words(keys_N, purpose=11, count=n_bytes // 8).view(np.uint8).reshape(len(keys_N), -1, 2)
    total = bytes_NB[:, :, 0].astype(np.float32) + bytes_NB[:, :, 1]
    return ((total - 255) * (NOISE_SD / 104.5)).reshape(len(keys_N), CANVAS, CANVAS, 3)


def render(scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes.

    Returns:
        images uint8 [N, 48, 48, 3], masks uint8 [N, 48, 48] (0 = background, i + 1 = object i in reading order; a pixel
        belongs to an object when its centre lies inside the outline, whatever the texture and visibility).
    """
    n = len(scenes)
    canvas = np.repeat(_background(scenes.keys)[..., None], 3, axis=-1)
    masks = np.zeros((n, CANVAS, CANVAS), dtype=np.uint8)
    cells_canvas = canvas.reshape(n, GRID, CELL, GRID, CELL, 3)
    cells_mask = masks.reshape(n, GRID, CELL, GRID, CELL)
    centre_NMX = scenes.centres()
    for shape in range(len(SHAPES)):
        row, m = np.nonzero(scenes.present & (scenes.shape == shape))
        cell = scenes.cell[row, m]
        cell_y, cell_x = cell // GRID, cell % GRID
        pixel = np.arange(CELL, dtype=np.float32) + 0.5
        x_PXY = (cell_x[:, None] * CELL + pixel - centre_NMX[row, m, 0][:, None]).astype(np.float32)[:, None, :]
        y_PXY = (cell_y[:, None] * CELL + pixel - centre_NMX[row, m, 1][:, None]).astype(np.float32)[:, :, None]
        x_PXY, y_PXY = np.broadcast_arrays(x_PXY, y_PXY)
        radius = np.asarray(RADII, dtype=np.float32)[scenes.size[row, m]][:, None, None]
        distance = signed_distance(shape, x_PXY, y_PXY, radius)
        paint = _paint(scenes.color[row, m], scenes.texture[row, m], x_PXY, y_PXY)
        coverage = np.clip(0.5 - distance, 0, 1) * np.where(scenes.visible[row, m], 1, HIDDEN_CONTRAST)[:, None, None]
        below = cells_canvas[row, cell_y, :, cell_x]
        cells_canvas[row, cell_y, :, cell_x] = below + coverage[..., None].astype(np.float32) * (paint - below)
        cells_mask[row, cell_y, :, cell_x] += ((distance < 0) * (m + 1)[:, None, None]).astype(np.uint8)
    canvas += _noise(scenes.keys)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), masks


def surface(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a texture makes of a plain colour at each pixel: it shows `shade` · colour + `light`, both as x and y.

    Args:
        texture: index into TEXTURES, broadcast against x and y (pixels right of and below the object's centre).
    """
    stripes = (texture == 1) & (np.cos(y * (2 * math.pi / 4)) > 0)
    dots = (texture == 2) & (np.cos(x * (2 * math.pi / 4)) + np.cos(y * (2 * math.pi / 4)) > 0.6)
    return np.where(dots, 0.15, np.where(stripes, 0.25, 1.0)), np.where(dots, 0.85 * 255, 0.0)


def _paint(color: np.ndarray, texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Surface colour at each pixel [P, 16, 16, 3]: plain, with dark stripes, or with white dots."""
    shade, light = surface(texture[:, None, None], x, y)
    return shade[..., None] * PALETTE[color][:, None, None, :] + light[..., None]
