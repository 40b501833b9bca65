"""Scenes of the shapes world as references: rows, or the tars of prepared data."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from cmma.data.samples import Sample
from cmma.data.tars import read_truths
from cmma.evaluation.scoring.job import Problems
from cmma.evaluation.scoring.rows import image_key, read_rows
from cmma.testbed.language import RELATIONS
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES

_WORDS = {"shape": SHAPES, "color": COLORS, "size": SIZES, "texture": TEXTURES}


def read_scenes(path: Path, wanted: Collection[str], problems: Problems) -> dict[str, Sample]:
    """Image → its scene, of the wanted images; the samples have no picture and no caption.

    Args:
        path: rows {"image_id", "objects", "relations"}, or a tar or a folder of tars whose samples' JSON holds these.

    Raises:
        DataError: a file that cannot be read.
    """
    scenes: dict[str, Sample] = {}
    for place, image, content in _contents(path, problems):
        if image is None or image not in wanted:
            continue
        if not is_scene(content):
            problems.add("reference_without_scene", place)
        elif image in scenes:
            problems.add("reference_again", f"{place}, image {image}")
        else:
            scenes[image] = Sample(image, Image.new("RGB", (1, 1)), "", content)
    return scenes


def _contents(path: Path, problems: Problems) -> Iterator[tuple[str, str | None, Any]]:
    if path.is_dir() or (path.is_file() and path.suffix == ".tar"):
        yield from ((key, image_key(key), truth) for key, truth in read_truths(path))
    else:
        yield from read_rows(path, problems)


def is_scene(content: Any) -> bool:
    """Whether a JSON object holds objects with all four attributes, and the relations that hold between them."""
    if not isinstance(content, dict):
        return False
    objects, relations = content.get("objects"), content.get("relations")
    return (
        isinstance(objects, list) and isinstance(relations, list) and bool(objects)
        and all(isinstance(thing, dict) and all(thing.get(name) in words for name, words in _WORDS.items())
                for thing in objects)
        and all(_is_relation(relation, len(objects)) for relation in relations)
    )  # fmt: skip


def _is_relation(relation: Any, n_objects: int) -> bool:
    return (
        isinstance(relation, list) and len(relation) == 3 and relation[1] in (*RELATIONS,)
        and all(type(index) is int and 0 <= index < n_objects for index in (relation[0], relation[2]))
    )  # fmt: skip
