"""Images as data URIs, so that a page needs nothing but itself."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

MAX_SIDE = 160
PIXEL_SIDE = 96  # images up to this side are shown enlarged with hard pixels
_GLOW = np.array([[255, 72, 0], [255, 170, 0], [255, 248, 150]], dtype=np.float64)  # weak → strong


def centre_square(image: Image.Image) -> Image.Image:
    """The central square: what CLIP-style preprocessing (resize the short side, crop the centre) shows the model."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def data_uri(image: Image.Image, side: int = MAX_SIDE) -> str:
    """The image's central square as a WebP data URI of at most `side` pixels; small images are kept lossless."""
    square = centre_square(image.convert("RGB"))
    small = square.width <= PIXEL_SIDE
    if square.width > side:
        square = square.resize((side, side), Image.Resampling.LANCZOS)
    return _encode(square, "WEBP", lossless=small, quality=80, method=4)


def heat_uri(values_RC: np.ndarray) -> str:
    """A patch heat map as a transparent PNG of one pixel per patch; `values_RC` in [0, 1], opacity = value."""
    values_RC = np.clip(np.nan_to_num(np.asarray(values_RC, dtype=np.float64)), 0.0, 1.0)
    stops = np.linspace(0, 1, len(_GLOW))
    rgb = np.stack([np.interp(values_RC, stops, _GLOW[:, channel]) for channel in range(3)], axis=-1)
    alpha = 255 * values_RC[..., None]
    return _encode(Image.fromarray(np.concatenate([rgb, alpha], axis=-1).round().astype(np.uint8), "RGBA"), "PNG")


def _encode(image: Image.Image, form: str, **options: object) -> str:
    out = io.BytesIO()
    image.save(out, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
