"""Samples in webdataset tars: written so that equal samples give equal bytes, and never read in part.

One sample is `key.json` (its truth), `key.txt` (its caption), `key.png` or `key.jpg`, and, where its objects are
outlined, `key.mask.png`. Tars that img2dataset makes have the same form. A tar is complete if its headers lead without
a gap to the end-of-archive mark: the tar reader itself takes a damaged header, and a file cut between two members, for
the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from cmma.artifacts.files import atomic_path
from cmma.data.images import SUFFIXES, open_picture
from cmma.data.samples import Sample
from cmma.data.sources import FileSample, KeyMaker, Skipped, check_meta
from cmma.errors import DataError

_KEY = re.compile(r"[^./]+")
_BLOCK = 512
_IMAGE_ENDINGS = tuple(suffix.removeprefix(".") for suffix in sorted(SUFFIXES))


@dataclass(frozen=True)
class TarInfo:
    """What was written: number of samples, sha256 of the file, its size in bytes."""

    n: int
    sha256: str
    bytes: int


def write_tar(path: Path, samples: Iterable[Sample], image_format: Literal["png", "jpeg"] = "png") -> TarInfo:
    """Write samples in the given order. Equal samples give an equal file, whenever and wherever it is written.

    The file appears under its name when it is whole and on the disk: it is written beside it and renamed.

    Args:
        path: the tar.
        samples: their keys must be unique and free of dots and slashes.
        image_format: "png" keeps every pixel. "jpeg" is for photographs: the bytes of a JPEG file that needed no change
            are kept, other images are stored at quality 95 without chroma subsampling.

    Raises:
        DataError: a key that cannot be used.
        ArtifactError: the disk is full, or cannot be written.
    """
    count = 0
    keys: set[str] = set()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        sink = _HashedFile(file)
        with tarfile.open(fileobj=sink, mode="w|") as tar:  # type: ignore[call-overload]
            for sample in samples:
                if not _KEY.fullmatch(sample.key) or sample.key in keys:
                    raise DataError(f"{path}: sample key {sample.key!r} is taken, empty, or holds a dot or slash")
                keys.add(sample.key)
                for ending, content in sorted(_members_of(sample, image_format).items()):
                    member = tarfile.TarInfo(f"{sample.key}.{ending}")  # its defaults: mtime 0, owner 0, mode 0644
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                count += 1
    return TarInfo(count, sink.sha256.hexdigest(), sink.size)


def read_tars(paths: Sequence[Path], start: int = 0, stop: int | None = None) -> Iterator[Sample]:
    """Samples `start` to `stop` (exclusive; None: all) of the tars' concatenation, in order.

    Raises:
        DataError: a missing, truncated or damaged tar, or a sample in it without a usable image.
    """
    offset = 0
    for path in paths:
        if stop is not None and offset >= stop:
            return
        count = len(_index(path))
        if offset + count > start:
            for position, record in enumerate(_records(path, count), start=offset):
                if start <= position and (stop is None or position < stop):
                    yield _sample(record, path)
        offset += count


def count_samples(paths: Sequence[Path]) -> int:
    """Number of samples in the tars. Reads only headers. Raises DataError like `read_tars`."""
    return sum(len(_index(path)) for path in paths)


def load_samples(paths: Sequence[Path], keys: Sequence[str]) -> list[Sample]:
    """The named samples, in the order of `keys`.

    Raises:
        DataError: a key that is in none of the tars, or as for `read_tars`.
    """
    wanted, found = set(keys), {}
    for path in paths:
        here = {key: members for key, members in _index(path).items() if key in wanted}
        with path.open("rb") as file:
            for key, members in here.items():
                record: dict[str, Any] = {"__key__": key}
                for ending, (position, size) in members.items():
                    file.seek(position)
                    record[ending] = file.read(size)
                found[key] = _sample(record, path)
        wanted -= here.keys()
    if wanted:
        raise DataError(f"no sample {min(wanted)!r} in {len(paths)} tars" + _first_of(paths))
    return [found[key] for key in keys]


def read_truths(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and JSON of every sample of a tar, or of the tars of a folder; no image is decoded.

    Raises:
        DataError: no such tar, a truncated or damaged one, or JSON that cannot be read.
    """
    for tar in find_tars(path):
        with tar.open("rb") as file:
            for key, members in _index(tar).items():
                position, size = members.get("json", (0, 0))
                file.seek(position)
                try:
                    yield key, json.loads(file.read(size) or b"{}")
                except ValueError as error:
                    raise DataError(f"{tar}: {key}: JSON cannot be read ({error})") from error


def read_webdataset(
    path: Path, label_column: str = "", max_side: int = 0
) -> Iterator[FileSample | Skipped]:
    """Samples of tars from elsewhere (img2dataset and the like): one tar, or every `*.tar` of a folder in name order.

    Samples without a usable image are named and left out; a tar that is not whole still raises. `label_column` names
    the field of the sample's JSON that holds its category, where the JSON has no `labels`.

    Raises:
        DataError: no such file or folder, no tar in it, a truncated or damaged tar.
    """
    paths = find_tars(path)
    return _foreign_samples(paths, label_column, max_side)


def find_tars(path: Path) -> list[Path]:
    """The tar `path` itself, or the tars of the folder `path` in name order. Raises DataError if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; set dataset.path to a tar or a folder of tars")
    paths = sorted(path.glob("*.tar"))
    if not paths:
        raise DataError(f"{path}: no .tar files in this folder")
    return paths


def _foreign_samples(
    paths: Sequence[Path], label_column: str, max_side: int
) -> Iterator[FileSample | Skipped]:
    make_key = KeyMaker()
    for path in paths:
        for record in _records(path, len(_index(path))):
            try:
                sample = _sample(record, path, max_side)
            except DataError as error:
                yield Skipped(f"{path.name}: {record['__key__']}", str(error).split(": ", 2)[-1])
                continue
            label = sample.meta.get(label_column) if label_column else None
            meta = {**sample.meta, "source": sample.meta.get("url", f"{path.name}: {sample.key}")}
            if label is not None:
                meta.setdefault("labels", [str(label)])
            key = make_key(sample.key)
            yield FileSample(key, sample.image, sample.caption, meta, sample.mask, picture=sample.picture)


def _members_of(sample: Sample, image_format: str) -> dict[str, bytes]:
    """File ending → content of one sample."""
    meta = json.dumps(sample.meta, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    members = {"json": meta.encode(), "txt": sample.caption.encode()}
    kept = sample.picture if isinstance(sample, FileSample) else None
    if image_format == "jpeg" and kept is not None and kept.jpeg is not None and kept.image is sample.image:
        members["jpg"] = kept.jpeg
    elif image_format == "jpeg":
        members["jpg"] = _encode(sample.image, "JPEG", quality=95, subsampling=0)
    else:
        members["png"] = _encode(sample.image, "PNG")
    if sample.mask is not None:
        members["mask.png"] = _encode(Image.fromarray(sample.mask.astype(np.uint8)), "PNG")
    return members


def _encode(image: Image.Image, image_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _sample(record: dict[str, Any], path: Path, max_side: int = 0) -> FileSample:
    """Decode one webdataset record. Errors read `tar: key: reason`."""
    key = record["__key__"]
    where = f"{path}: {key}"
    ending = next((ending for ending in _IMAGE_ENDINGS if ending in record), None)
    if ending is None:
        raise DataError(f"{where}: no image")
    picture = open_picture(record[ending], max_side, name=where)
    try:
        caption = record.get("txt", b"").decode("utf-8-sig").strip()
        meta = json.loads(record.get("json", b"{}"))
    except ValueError as error:
        raise DataError(f"{where}: caption or JSON cannot be read ({error})") from error
    reason = check_meta(meta)
    if reason:
        raise DataError(f"{where}: {reason}")
    mask = None
    if "mask.png" in record:
        mask = _mask(record["mask.png"], where)
        if mask.shape != (picture.image.height, picture.image.width):
            raise DataError(f"{where}: the mask has another size than the image")
    return FileSample(key, picture.image, caption, meta, mask, picture=picture)


def _mask(data: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as mask:
            return np.array(mask.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: the mask cannot be decoded ({error})") from error


def _records(path: Path, expected: int) -> Iterator[dict[str, Any]]:
    """The `expected` samples of a whole tar as webdataset groups them: `__key__`, and file ending → bytes.

    webdataset is handed the open file: as a URL, a path with a colon could start a program (`pipe:`) or a download.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

    seen = 0
    try:
        with path.open("rb") as stream:
            for record in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])):
                seen += 1
                yield record
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged tar ({' '.join(str(error.args[0]).split())})") from error
    if seen != expected:
        raise DataError(f"{path}: damaged tar ({seen} of {expected} samples can be read)")


def _index(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Key → file ending → (position, size) for each sample of a whole tar, by webdataset's own naming rule.

    Raises:
        DataError: the tar is missing, truncated or damaged, or the members of one sample do not lie together.
    """
    from webdataset.tariterators import base_plus_ext  # imports torch

    index: dict[str, dict[str, tuple[int, int]]] = {}
    previous = None
    for member in _members(path):
        key, ending = base_plus_ext(member.name)
        if key is None or not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):
            continue  # webdataset passes these over: hidden and meta files
        if key != previous and key in index:
            raise DataError(f"{path}: the members of sample {key!r} do not lie together")
        index.setdefault(key, {})[ending.lower()] = (member.offset_data, member.size)
        previous = key
    return index


def _members(path: Path) -> list[tarfile.TarInfo]:
    """All members, by a walk over the headers that must arrive at the end-of-archive mark."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
            end = max((member.offset_data + member.size for member in members), default=0)
            file.seek(-(-end // _BLOCK) * _BLOCK)
            rest = file.read(2 * _BLOCK)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path}: truncated or damaged tar, or not a tar ({error})") from error
    if len(rest) < 2 * _BLOCK or any(rest):
        what = "truncated" if len(rest) < 2 * _BLOCK else "damaged"
        raise DataError(f"{path}: {what} tar (its {len(members)} members do not end in the end-of-archive mark)")
    return members


def _first_of(paths: Sequence[Path]) -> str:
    return f" ({paths[0]}, …)" if paths else ""



class _HashedFile:
    """Hashes and counts what passes through to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)
