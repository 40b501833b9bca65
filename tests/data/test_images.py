"""Every kind of image file that real folders hold, made here; Pillow's decoders are the ones under guard."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmma.data.images import MAX_PIXELS, open_image, open_picture
from cmma.errors import DataError


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth colours, as a lossy code keeps them."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def test_cmyk_becomes_the_same_colours():
    image = open_image(encoded(photo().convert("CMYK"), "JPEG", quality=98))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - np.asarray(photo(), int)).mean() < 6


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65_535, 255), (257 * 100, 100), (257 * 100 + 128, 100)])
def test_sixteen_bit_grey_is_scaled_not_clipped(value: int, expected: int):
    image = open_image(encoded(Image.fromarray(np.full((4, 5), value, np.uint16)), "PNG"))
    assert set(np.asarray(image).ravel()) == {expected}


def test_transparency_is_composited_on_white():
    half_black = Image.new("RGBA", (3, 3), (0, 0, 0, 128))
    assert set(np.asarray(open_image(encoded(half_black, "PNG"))).ravel()) == {255 - 128}


def test_transparent_palette_entry_is_white_and_the_others_keep_their_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(open_image(encoded(image, "PNG", transparency=0)))
    assert pixels.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to view
    image = open_image(encoded(photo(40, 30), "JPEG", exif=exif))
    assert image.size == (30, 40)
    assert np.abs(np.asarray(image, int) - np.asarray(photo().rotate(270, expand=True), int)).mean() < 4


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    image = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr"])
def test_every_mode_of_tiff_opens_as_rgb_without_metadata(mode: str):
    source = photo().convert("L").convert(mode) if mode in ("I;16", "LA") else photo().convert(mode)
    image = open_image(encoded(source, "TIFF"))
    assert (image.mode, image.size, image.info) == ("RGB", (40, 30), {})


def test_large_image_is_scaled_to_the_longer_side():
    assert open_image(encoded(photo(1200, 600), "JPEG"), max_side=100).size == (100, 50)
    assert open_image(encoded(photo(40, 30), "JPEG"), max_side=100).size == (40, 30)


def png_header_claiming(width: int, height: int) -> bytes:
    """A few bytes that announce an enormous image: a decompression bomb's head."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [9_460, 20_000, 60_000])  # just above the limit; where Pillow warns; where it refuses
def test_too_many_pixels_are_refused_before_decoding(side: int):
    assert side * side > MAX_PIXELS
    with pytest.raises(DataError, match="more than 89,478,485 pixels"):
        open_image(png_header_claiming(side, side), name="bomb.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"just words", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # EPS would start Ghostscript
        (encoded(photo(), "JPEG")[:-200], "cannot be decoded"),
        (encoded(photo(), "PNG")[:-60], "cannot be decoded"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    ],
)
def test_unusable_files_give_one_line_with_their_name(content: bytes, reason: str):
    with pytest.raises(DataError, match=f"^broken.jpg: .*{reason}") as caught:
        open_image(content, name="broken.jpg")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="directory"):
        open_image(tmp_path)


SMALL_FILES = [
    encoded(photo(24, 20), "JPEG"), encoded(photo(24, 20), "PNG"), encoded(photo(24, 20).convert("P"), "GIF"),
    encoded(photo(24, 20), "TIFF", compression="tiff_lzw"), encoded(photo(24, 20), "WEBP"),
    encoded(photo(24, 20), "BMP"), encoded(photo(24, 20), "JPEG2000"),
]  # fmt: skip


@given(st.sampled_from(SMALL_FILES), st.integers(0), st.binary(max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_damage_gives_an_rgb_image_or_a_data_error(content: bytes, position: int, noise: bytes, cut: bool):
    position %= len(content)
    damaged = content[:position] + noise + (b"" if cut else content[position + len(noise) :])
    try:
        outcome = open_image(damaged, max_side=16).mode
    except DataError as error:
        outcome = str(error)
    assert outcome == "RGB" or (outcome.startswith("image: ") and "\n" not in outcome)


def test_jpeg_bytes_are_kept_only_where_they_decode_to_the_image():
    plain = encoded(photo(), "JPEG")
    assert open_picture(plain).jpeg == plain
    assert open_picture(plain, max_side=64).jpeg == plain
    assert open_picture(plain, max_side=20).jpeg is None
    assert open_picture(encoded(photo().convert("L"), "JPEG")).jpeg is None
    assert open_picture(encoded(photo(), "PNG")).jpeg is None
