"""Opening image files of any kind as plain 8-bit RGB, or saying in one line why not.

Everything that real folders hold is brought to one form: CMYK and YCCK are converted, 16-bit grey is scaled to 8 bits,
palettes are resolved, transparency is composited on white, EXIF orientation is applied, and of animated or paged files
the first frame is taken. Colour profiles are ignored, as the models' own preprocessing ignores them.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cmma.errors import DataError

MAX_PIXELS = 89_478_485
"""Images with more pixels than this are refused before they are decoded (Pillow's own decompression-bomb limit)."""

MAX_BYTES = 2**29
"""Image files larger than this (512 MiB) are refused before they are read."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")
"""Formats that are tried. JPEG includes the cameras' multi-picture files. Pillow knows more formats, some of
which start other programs (EPS: Ghostscript)."""

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm",
    ".jp2",
})  # fmt: skip
"""File name endings, in lower case, that are taken for images when a folder or a tar is looked through."""

_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, struct.error,
    RuntimeError, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow's decoders raise on damaged files: they do not agree on one error."""


@dataclass(frozen=True)
class Picture:
    """A decoded image, and the file's own bytes where these are worth keeping.

    Attributes:
        image: RGB, without metadata.
        jpeg: the bytes of the file if it is a JPEG that decodes to exactly `image`; None otherwise. Storing them avoids
            a second lossy compression.
    """

    image: Image.Image
    jpeg: bytes | None


def open_image(source: Path | bytes, max_side: int = 0, name: str | None = None) -> Image.Image:
    """The image as 8-bit RGB.

    Args:
        source: a file, or its content.
        max_side: longer sides are scaled down to this many pixels, keeping the aspect ratio; 0 keeps the size.
        name: what the image is called in errors; default: the path.

    Raises:
        DataError: not an image, truncated, damaged, of an unusable kind, or more than `MAX_PIXELS` pixels.
    """
    return open_picture(source, max_side, name).image


def open_picture(source: Path | bytes, max_side: int = 0, name: str | None = None) -> Picture:
    """Like `open_image`, with the original bytes where they can be stored as they are."""
    name = name or (str(source) if isinstance(source, Path) else "image")
    data = _read(source, name) if isinstance(source, Path) else source
    if not data:
        raise DataError(f"{name}: empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                return _decode(opened, data, max_side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: more than {MAX_PIXELS:,} pixels; scale it down first") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image in a known format") from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({reason})") from error


def _read(path: Path, name: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{name}: file of {size / 2**20:,.0f} MiB; at most {MAX_BYTES // 2**20} MiB are read")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error


def _decode(opened: Image.Image, data: bytes, max_side: int) -> Picture:
    if opened.width * opened.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if max_side:  # lets the JPEG decoder skip detail; twice the size, so that the filter below still sees it
        opened.draft(None, (2 * max_side, 2 * max_side))
    is_jpeg = opened.format == "JPEG"
    opened.load()
    upright = _upright(opened)
    image = _to_rgb(upright)
    if max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    image.info.clear()
    untouched = is_jpeg and opened.mode == "RGB" and upright is opened
    if untouched and max_side:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            untouched = header.size == image.size
    return Picture(image, data if untouched else None)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. A damaged EXIF block says nothing, and the image stays as it is."""
    try:
        orientation = image.getexif().get(0x0112, 1)
        return image if orientation == 1 else ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB in a fresh image; transparency on white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 0..65535 to 0..255, rounded
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
