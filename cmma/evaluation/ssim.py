"""SSIM (Wang et al. 2004) of two images, with everything fixed that implementations differ in.

RGB, each channel alone and then averaged; values 0 to 255; Gaussian window of 11 pixels, σ = 1.5; K1 = 0.01, K2 = 0.03;
population covariances; the mean over windows that lie inside the image. torchmetrics computes the map; it would average
over its padded border too.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from cmma.errors import DataError

WINDOW, SIGMA, DATA_RANGE = 11, 1.5, 255.0


def ssim(first: Image.Image, second: Image.Image) -> float:
    """SSIM of two RGB images. Raises DataError where they differ in size or are smaller than the window."""
    if first.size != second.size:
        raise DataError(f"sizes {first.size} and {second.size} differ")
    if min(first.size) < WINDOW:
        raise DataError(f"size {first.size} is below the window of {WINDOW} pixels")
    _, map_1CHW = structural_similarity_index_measure(
        _pixels(first), _pixels(second), sigma=SIGMA, kernel_size=WINDOW, data_range=DATA_RANGE,
        return_full_image=True,
    )  # fmt: skip
    edge = WINDOW // 2
    height, width = map_1CHW.shape[-2:]
    return float(map_1CHW[..., edge : height - edge, edge : width - edge].mean())


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"), np.float64)).permute(2, 0, 1)[None]
