"""Maps of single patches over images."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cmma.causal.patch_maps import overlay, patch_maps
from cmma.causal.result import PatchResult
from cmma.data.samples import Sample


def test_colours_stand_where_the_patches_are():
    """A white image of two columns, the left half cut off with its centre square: red right, blue below."""
    image = Image.new("RGB", (60, 40), "white")
    pixels = np.asarray(overlay(image, np.array([[0.0, 1.0], [-0.5, 0.0]])), dtype=int)
    half = pixels.shape[0] // 2
    quarters = [pixels[:half, :half], pixels[:half, half:], pixels[half:, :half], pixels[half:, half:]]
    assert [tuple(quarter.reshape(-1, 3).mean(0).round().astype(int)) for quarter in quarters] == [
        (255, 255, 255), (222, 82, 83), (165, 201, 225), (255, 255, 255)
    ]  # fmt: skip


def test_each_image_is_scaled_by_its_own_largest_effect():
    groups = ("patch 0,0", "patch 0,1", "last")
    score = np.zeros((2, 1, 3))
    score[0, 0], score[1, 0] = (0.0, 4.0, 9.0), (1.0, 0.0, 9.0)
    result = PatchResult(
        ("layers.0",), groups, ("a", "b"), score, np.zeros(2), np.ones(2), np.ones(2, dtype=bool), True, "p")
    samples = [Sample(key, Image.new("RGB", (8, 8)), "", {}) for key in "ab"]
    (gallery,), pictures = patch_maps(result, samples)
    assert [[name for name, _ in row] for row in gallery.images] == [
        ["images/patches-0.png", "images/patches-0-0.png"], ["images/patches-1.png", "images/patches-1-0.png"]
    ]  # fmt: skip
    right, left = (np.asarray(pictures[f"patches-{n}-0"], dtype=int).sum(axis=(0, 2)) for n in (0, 1))
    assert right[-1] == left[0] > 0 == right[0] == left[-1]  # the other word's group is no patch


def test_no_patches_no_gallery():
    result = PatchResult(("r",), ("last",), ("a",), np.zeros((1, 1, 1)), np.zeros(1), np.ones(1),
                         np.ones(1, dtype=bool), True, "p")  # fmt: skip
    assert patch_maps(result, []) == ((), {})
