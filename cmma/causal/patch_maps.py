"""Recovered effect of single patches, drawn over the images that they belong to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cmma.causal.result import PatchResult
from cmma.data.samples import Sample
from cmma.figures import Gallery

_PATCH = re.compile(r"patch (\d+),(\d+)")
_POSITIVE, _NEGATIVE = np.array([214.0, 39.0, 40.0]), np.array([31.0, 119.0, 180.0])
_SIDE = 144  # pixels of a drawn image


def patch_maps(
    result: PatchResult, samples: Sequence[Sample], n_images: int = 4, n_rows: int = 6
) -> tuple[tuple[Gallery, ...], dict[str, Image.Image]]:
    """A gallery of the first images, each beside its map at some of the rows; empty unless the groups are patches.

    Red recovers the answer, blue drives it further away; full colour is the largest |effect| of that image.

    Returns:
        The gallery, and name → picture for `Findings.images`.
    """
    cells = {index: tuple(map(int, found.groups())) for index, group in enumerate(result.groups)
             if (found := _PATCH.fullmatch(group))}  # fmt: skip
    if not cells:
        return (), {}
    shape = tuple(np.max(list(cells.values()), axis=0) + 1)
    picked = np.unique(np.linspace(0, len(result.rows) - 1, min(n_rows, len(result.rows))).round().astype(int))
    by_key = {sample.key: sample for sample in samples}
    gallery, pictures = [], {}
    effect_NRG = result.effect_NRG[:n_images, :, list(cells)]
    for number, (key, effect_RG) in enumerate(zip(result.images, effect_NRG, strict=False)):
        peak = np.nanmax(np.abs(effect_RG)) or 1.0
        name = f"patches-{number}"
        pictures[name] = _square(by_key[key].image)
        line = [(f"images/{name}.png", f"image {key}")]
        for row in picked:
            map_YX = np.zeros(shape)
            for place, value in zip(cells.values(), effect_RG[row], strict=True):
                map_YX[place] = value / peak
            pictures[f"{name}-{row}"] = overlay(by_key[key].image, map_YX)
            line.append((f"images/{name}-{row}.png", result.rows[row]))
        gallery.append(line)
    about = "red: restoring the patch recovers the answer; blue: drives it away; full colour: its largest effect"
    return (Gallery(title="effect of single patches, over the image", about=about, images=gallery),), pictures


def overlay(image: Image.Image, map_YX: np.ndarray) -> Image.Image:
    """The image (its centre square, grey) under a map of signed values from −1 to 1, one per patch."""
    grey_YXC = np.asarray(_square(image).convert("L"), dtype=float)[:, :, None].repeat(3, axis=2)
    large = Image.fromarray(map_YX.astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    value_YX1 = np.nan_to_num(np.asarray(large))[:, :, None].clip(-1, 1)
    colour_YXC = np.where(value_YX1 > 0, _POSITIVE, _NEGATIVE)
    weight_YX1 = 0.8 * np.abs(value_YX1)
    return Image.fromarray(((1 - weight_YX1) * grey_YXC + weight_YX1 * colour_YXC).round().astype(np.uint8))


def _square(image: Image.Image) -> Image.Image:
    """What the models see of an image: the centre square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.convert("RGB").crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE))
