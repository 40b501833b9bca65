"""Content keys and fingerprints (`docs/artifacts.md`, Key)."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmma.artifacts.files import sha256_of
from cmma.errors import DataError

KEY_LENGTH = 12
_HASH_WHOLE_FILE_BELOW = 64 * 2**20


def canonical_json(value: Any) -> str:
    """Sorted keys, no white space, no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def artifact_key(stage: str, version: int, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """The 12 hexadecimal digits that name an artifact."""
    content = canonical_json({"stage": stage, "version": version, "config": config, "parents": dict(parents)})
    return hashlib.sha256(content.encode()).hexdigest()[:KEY_LENGTH]


def fingerprint_images(folder: Path, captions: str) -> str:
    """What lies in an image folder: names and sizes of all files, and the bytes of the caption file.

    Raises:
        DataError: the folder or the caption file is not there.
    """
    if not folder.is_dir():
        raise DataError(f"dataset.path={folder} is not a folder; give the folder that holds the images and {captions}")
    caption_file = folder / captions
    if not caption_file.is_file():
        raise DataError(f"{caption_file} is missing; write it with the columns file,caption or set dataset.captions")
    listing = sorted(
        (str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file()
    )
    return _digest([listing, sha256_of(caption_file)])


def fingerprint_files(paths: list[Path]) -> str:
    """Names and sizes of a list of files (webdataset tars)."""
    return _digest([(path.name, path.stat().st_size) for path in sorted(paths)])


def fingerprint_contents(paths: list[Path]) -> str:
    """Names and bytes of a list of files, however large."""
    return _digest([(path.name, sha256_of(path)) for path in sorted(paths)])


def fingerprint_model(folder: Path) -> str:
    """What a local model folder holds: sha256 of small files, size and safetensors header of large ones.

    Raises:
        DataError: the folder is not there.
    """
    if not folder.is_dir():
        raise DataError(
            f"model folder {folder} does not exist; set model.source to a folder with config and safetensors"
        )
    entries = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            size = path.stat().st_size
            content = sha256_of(path) if size < _HASH_WHOLE_FILE_BELOW else _header_digest(path)
            entries.append((name.as_posix(), size, content))
    return _digest(entries)


def _header_digest(path: Path) -> str:
    with open(path, "rb") as handle:
        head = handle.read(8)
        length = min(struct.unpack("<Q", head)[0], 2**24) if path.suffix == ".safetensors" else 2**16
        return hashlib.sha256(head + handle.read(length)).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:KEY_LENGTH]


def expand(path: str) -> Path:
    """A user's path: `~` and relative paths resolved against the working directory."""
    return Path(os.path.abspath(os.path.expanduser(path)))
