"""Folders of images: their files by key, what is in them, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cmma.console import progress
from cmma.data.images import SUFFIXES, open_image
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.evaluation.embeddings import embed_batch
from cmma.evaluation.scoring.job import Problems
from cmma.evaluation.scoring.rows import image_key
from cmma.models.base import MultimodalModel


def image_files(folder: Path, problems: Problems) -> dict[str, Path]:
    """Key → file, for every image of a folder and its sub-folders, by name.

    Raises:
        DataError: no folder, or one without an image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder of images")
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        key = image_key(path.relative_to(folder).as_posix())
        assert key is not None  # a file has a name
        if key in files:
            problems.add("image_again", f"{path.name}, as {files[key].name}")
        files.setdefault(key, path)
    if not files:
        raise DataError(f"{folder}: holds no image file")
    return files


def open_or_note(path: Path, problems: Problems) -> Image.Image | None:
    """The image as RGB; None, and counted, where it cannot be decoded."""
    try:
        return open_image(path)
    except DataError as error:
        problems.add("unreadable_image", str(error))
        return None


def image_batches(
    files: dict[str, Path], batch_size: int, problems: Problems, label: str
) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Keys and images in batches, in order; what cannot be decoded is left out and counted."""
    names = list(files)
    with progress(label, total=len(names)) as bar:
        for start in range(0, len(names), batch_size):
            some = names[start : start + batch_size]
            opened = {key: open_or_note(files[key], problems) for key in some}
            images = {key: image for key, image in opened.items() if image is not None}
            if images:
                yield list(images), list(images.values())
            bar.advance(len(some))


def features_of(
    folder: Path, read: Callable[[list[Image.Image]], np.ndarray], batch_size: int, problems: Problems
) -> tuple[list[str], np.ndarray]:
    """Keys and features [N, D] of every image of a folder. Raises DataError where not one can be decoded."""
    keys, parts = [], []
    for some, images in image_batches(image_files(folder, problems), batch_size, problems, f"Reading {folder.name}"):
        keys += some
        parts.append(read(images))
    if not parts:
        first = problems.examples["unreadable_image"][0]
        raise DataError(f"{folder}: not one image can be decoded; the first is {first}")
    return keys, np.concatenate(parts)


def embed_images(
    model: MultimodalModel, images: Sequence[Image.Image], texts: Sequence[str] | None = None, square: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, D] of images and of texts, one each (default: empty texts).

    Args:
        square: first scale each image to this width and height, whatever its shape; 0 leaves that to the model's own
            transform, which scales the short side and cuts out the middle.
    """
    if square:
        images = [image.resize((square, square), Image.Resampling.BICUBIC) for image in images]
    samples = [Sample(str(number), image, "") for number, image in enumerate(images)]
    return embed_batch(model, samples, texts if texts is not None else [""] * len(samples))
