"""COCO annotations: a folder of `instances_*.json` and `captions_*.json`."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from cmma.errors import DataError
from cmma.evaluation.scoring.rows import image_key


def coco_categories(folder: Path, wanted: Container[str]) -> dict[str, set[str]]:
    """Image → names of the categories annotated in it, of the wanted images that the files know.

    Raises:
        DataError: no such file, or one that is no COCO annotation.
    """
    found: dict[str, set[str]] = {}
    for content, place in _contents(folder, "instances"):
        names = {category["id"]: str(category["name"]) for category in _entries(content, "categories", place)}
        for image in _entries(content, "images", place):
            _of_image(found, image["id"], wanted)
        for annotation in _entries(content, "annotations", place):
            objects = _of_image(found, annotation["image_id"], wanted)
            if objects is not None:
                objects.add(names[annotation["category_id"]])
    return found


def coco_captions(folder: Path, wanted: Container[str]) -> dict[str, list[str]]:
    """Image → its reference captions, of the wanted images. Raises DataError as `coco_categories`."""
    found: dict[str, list[str]] = {}
    for content, place in _contents(folder, "captions"):
        for annotation in _entries(content, "annotations", place):
            key = image_key(annotation["image_id"])
            if key is not None and key in wanted:
                found.setdefault(key, []).append(str(annotation["caption"]))
    return found


def _of_image(found: dict[str, set[str]], number: object, wanted: Container[str]) -> set[str] | None:
    key = image_key(number)
    return found.setdefault(key, set()) if key is not None and key in wanted else None


def _contents(folder: Path, kind: str) -> list[tuple[dict[str, Any], Path]]:
    paths = sorted(folder.glob(f"{kind}_*.json"))
    if not paths:
        raise DataError(f"{folder}: holds no {kind}_*.json; give COCO's annotation folder, or a JSONL file")
    contents = []
    for path in paths:
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        contents.append((content, path))
    return contents


def _entries(content: Any, section: str, path: Path) -> list[dict[str, Any]]:
    """A section of an annotation file, with the keys that are used."""
    keys = {"categories": ("id", "name"), "images": ("id",), "annotations": ("image_id",)}[section]
    entries = content.get(section) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and set(keys) <= e.keys() for e in entries):
        raise DataError(f"{path}: has no usable section {section!r}; it is no COCO annotation file")
    return entries
