"""What a source of samples yields: a sample, or the name of what was left out and why."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from cmma.data.images import Picture
from cmma.data.samples import Sample


@dataclass(frozen=True)
class Skipped:
    """Something in the source that did not become a sample.

    Attributes:
        name: file, row or member, as the user knows it.
        reason: one line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class FileSample(Sample):
    """A sample whose image comes from a file; the tar writer keeps the file's own JPEG bytes where it can.

    Attributes:
        picture: the image as it was read. It is disregarded once `image` is another object.
    """

    picture: Picture | None = None


class KeyMaker:
    """Turns file names into sample keys: unique, and without the dots and slashes that tars of samples reserve.

    The key of `cats/a cat.v2.jpg` is `cats_a_cat_v2`. A second file that would get the same key (`cats/a_cat.v2.png`)
    has eight hexadecimal digits of its name's sha256 appended.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, name: str) -> str:
        """The key for one more file name."""
        stem = name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1].lstrip(".") else name
        plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
        key = re.sub(r"[^A-Za-z0-9_-]+", "_", plain).strip("_") or "image"
        if key in self._taken:
            key = f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self._taken.add(key)
        return key


def is_for_training(key: str, train_fraction: float, seed: int = 0) -> bool:
    """Whether a sample of data without a split of its own is for training; the others are held out.

    The sample's key alone decides, so that adding or removing images moves none of the others.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < train_fraction * 2**64


def check_meta(meta: Any) -> str | None:
    """Why this JSON cannot be a sample's truth, or None if it can. Fields that cmma does not know are free."""
    if not isinstance(meta, dict):
        return "its JSON is not an object"
    if not _is_list_of(meta.get("labels", []), str):
        return "labels must be a list of strings"
    if not _is_list_of(meta.get("objects", []), dict):
        return "objects must be a list of JSON objects"
    questions = meta.get("questions", [])
    if not _is_list_of(questions, dict) or any(set(entry) != {"question", "answer", "kind"} for entry in questions):
        return "questions must be a list of {question, answer, kind}"
    return None


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
