"""Rows of JSON that belong to images: captions, answers, objects. Whatever cannot be used is counted and named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cmma.artifacts.files import write_text
from cmma.errors import DataError
from cmma.evaluation.scoring.job import Problems

MAX_CHARACTERS = 100_000
"""A text longer than this is no caption; it is left out and named."""

_COCO_NUMBER = re.compile(r"(?:COCO_\w+_)?0*(\d+)")
_SUFFIX = re.compile(r"\.(?:jpe?g|png|gif|webp|tiff?|bmp)$", re.IGNORECASE)
_IMAGE = ("image_id", "image", "key")
_LATIN = re.compile(r"[a-z]", re.IGNORECASE)


class Row(NamedTuple):
    """One row: where it stands, the image that it is about, and what it says."""

    place: str
    image: str
    content: dict[str, Any]


class Text(NamedTuple):
    """A text about an image."""

    image: str
    text: str


def image_key(value: object) -> str | None:
    """What an image is called in all files alike: "COCO_val2014_000000000042.jpg", "42" and 42 are one image.

    None for what cannot name an image.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
        return None
    name = _SUFFIX.sub("", re.split(r"[/\\]", str(value).strip())[-1])
    number = _COCO_NUMBER.fullmatch(name)
    return number[1] if number else name


def read_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """The rows of a JSONL file, or of a JSON file that is one list; every row has `image_id`, `image` or `key`.

    Raises:
        DataError: the file cannot be read.
    """
    for place, content in read_contents(path, problems):
        image = image_key(next((content[name] for name in _IMAGE if name in content), None))
        if image is None:
            problems.add("row_without_image", place)
        else:
            yield Row(place, image, content)


def read_contents(path: Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object of the file with its place, whatever it is about. Raises DataError as `read_rows`."""
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    lines: Iterable[tuple[int, Any]]
    if data.lstrip()[:1] == b"[":
        lines = enumerate(_parse_list(path, data), start=1)
    else:
        lines = ((number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip())
    for number, line in lines:
        place = f"{path.name} line {number}" if isinstance(line, bytes) else f"{path.name} entry {number}"
        try:
            content = json.loads(line) if isinstance(line, bytes) else line
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            yield place, content
        else:
            problems.add("malformed_row", place)


def _parse_list(path: Path, data: bytes) -> list[Any]:
    try:
        return list(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: begins like a JSON list and is none ({error})") from error


def read_texts(path: Path, names: Iterable[str], problems: Problems) -> list[Text]:
    """Texts about images, in the file's order; several of one image are all kept, and counted.

    Args:
        names: the first of these that a row has is its text.

    A row without a text, or with one of more than `MAX_CHARACTERS`, is left out. An empty text, or one without a single
    Latin letter, is kept.
    """
    texts, seen = [], set()
    for place, image, content in read_rows(path, problems):
        text = next((content[name] for name in names if name in content), None)
        if not isinstance(text, str):
            problems.add("row_without_text", place)
            continue
        if len(text) > MAX_CHARACTERS:
            problems.add("text_too_long", f"{place}, {len(text):,} characters")
            continue
        if not text.strip():
            problems.add("empty_text", place)
        elif not _LATIN.search(text) and any(map(str.isalpha, text)):
            problems.add("text_in_another_language", place)
        if image in seen:
            problems.add("image_again", f"{place}, image {image}")
        seen.add(image)
        texts.append(Text(image, text))
    return texts


def write_rows(path: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file, whole or not at all."""
    write_text(Path(path).expanduser(), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
