"""Any folder of images with a table of captions, as samples.

The table is UTF-8 (with or without a byte order mark), has a header, and separates its columns by comma, semicolon, tab
or bar, whichever makes the header name the needed columns:

    file,caption,class
    cat.jpg,a cat on a mat,cat

`file` is relative to the folder. Several rows for one file are several captions of it: the first is the sample's
caption, all of them are `meta["captions"]`.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from cmma.data.images import SUFFIXES, open_picture
from cmma.data.sources import FileSample, KeyMaker, Skipped
from cmma.errors import DataError

DEFAULT_LABEL_COLUMN = "class"
"""Column of category labels that is used if it is there, and not missed if it is not."""

_DELIMITERS = (",", ";", "\t", "|")


@dataclass
class _Entry:
    """What the table says about one file."""

    file: str
    captions: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def read_folder(
    path: Path,
    captions: str = "captions.csv",
    label_column: str = DEFAULT_LABEL_COLUMN,
    max_side: int = 0,
) -> Iterator[FileSample | Skipped]:
    """Samples in the order of the table, among them what had to be left out, and last the images that have no row.

    Args:
        path: the folder; images may lie in sub-folders.
        captions: name of the table inside the folder.
        label_column: column that holds a category; empty for none.
        max_side: larger images are scaled down to this longer side; 0 keeps them.

    Raises:
        DataError: at once, if the folder or the table is missing or the table cannot be read as a whole.
    """
    entries, skipped = read_captions(path, captions, label_column)
    return _samples(path, captions, entries, skipped, max_side)


def count_images(path: Path, captions: str = "captions.csv", label_column: str = DEFAULT_LABEL_COLUMN) -> int:
    """Number of files that the table names: the total of a progress bar over `read_folder`."""
    return len(read_captions(path, captions, label_column)[0])


def read_captions(path: Path, captions: str, label_column: str) -> tuple[list[_Entry], list[Skipped]]:
    """The table's files in order, and the rows that say nothing usable."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; set dataset.path to a folder of images with a {captions}")
    table = path / captions
    if not table.is_file():
        raise DataError(f"{table}: no such file; write one row per image under the header file,caption")
    try:
        lines = list(io.StringIO(table.read_bytes().decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror or error})") from error
    delimiter, header = _header(table, lines)
    if label_column not in header and label_column not in ("", DEFAULT_LABEL_COLUMN):
        raise DataError(f"{table}: no column {label_column!r}; columns are {', '.join(header)} (dataset.label_column)")

    entries: dict[str, _Entry] = {}
    skipped: list[Skipped] = []
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    next(reader)
    try:
        for row in reader:
            where = f"{captions} line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header):
                skipped.append(Skipped(where, f"{len(row)} columns, the header has {len(header)}; quote the caption"))
                continue
            cells = {column: cell.strip() for column, cell in zip(header, row, strict=False)}
            reason = _take(entries, cells, label_column)
            if reason:
                skipped.append(Skipped(f"{where}: {cells['file']}" if cells.get("file") else where, reason))
    except csv.Error as error:
        raise DataError(f"{table} line {reader.line_num}: {error}") from error
    return list(entries.values()), skipped


def _header(table: Path, lines: list[str]) -> tuple[str, list[str]]:
    if not lines:
        raise DataError(f"{table}: empty; write one row per image under the header file,caption")
    for delimiter in _DELIMITERS:
        header = [cell.strip() for cell in next(csv.reader(lines[:1], delimiter=delimiter))]
        lowered = [cell.lower() if cell.lower() in ("file", "caption") else cell for cell in header]
        if "file" in lowered and "caption" in lowered:
            if len(set(lowered)) < len(lowered):
                raise DataError(f"{table}: a column name occurs twice in the header {', '.join(header)}")
            return delimiter, lowered
    found = lines[0].strip()[:80]
    raise DataError(f"{table}: the first line must name the columns file and caption; it is {found!r}")


def _take(entries: dict[str, _Entry], cells: dict[str, str], label_column: str) -> str | None:
    """Add one row to the entries; the reason if it cannot be used."""
    file, caption = cells.get("file", ""), cells.get("caption", "")
    if not file:
        return "no file name"
    parts = PurePosixPath(file).parts
    if file.startswith("/") or ".." in parts or PureWindowsPath(file).drive:
        return "the path leaves the folder"
    if not caption:
        return "no caption"
    file = str(PurePosixPath(file))
    entry = entries.setdefault(file, _Entry(file))
    if caption in entry.captions:
        return "repeats an earlier row"
    entry.captions.append(caption)
    label = cells.get(label_column, "")
    if label and label not in entry.labels:
        entry.labels.append(label)
    return None


def _samples(
    path: Path, captions: str, entries: list[_Entry], skipped: list[Skipped], max_side: int
) -> Iterator[FileSample | Skipped]:
    yield from skipped
    files = _image_files(path)
    make_key = KeyMaker()
    for entry in entries:
        file = files.pop(_normal(entry.file), entry.file)
        if not (path / file).is_file():
            yield Skipped(entry.file, "no such file")
            continue
        try:
            picture = open_picture(path / file, max_side, name=entry.file)
        except DataError as error:
            yield Skipped(entry.file, str(error).removeprefix(f"{entry.file}: "))
            continue
        meta: dict[str, object] = {"labels": entry.labels, "source": entry.file}
        if len(entry.captions) > 1:
            meta["captions"] = entry.captions
        yield FileSample(make_key(entry.file), picture.image, entry.captions[0], meta, picture=picture)
    for file in files.values():
        yield Skipped(file, f"no row in {captions}")


def _image_files(path: Path) -> dict[str, str]:
    """Image files below the folder, relative, sorted: composed Unicode name → name on disk (macOS decomposes)."""
    found = []
    for folder, _, names in os.walk(path):
        relative = Path(folder).relative_to(path)
        found += [(relative / name).as_posix() for name in names if Path(name).suffix.lower() in SUFFIXES]
    return {_normal(name): name for name in sorted(found)}


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
