"""What every site is made of: its templates and policy, its tables as files, and a folder put in place at once."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cmma.report import figures
from cmma.report.inputs import ArtifactRef
from cmma.report.tables import Table

CSP = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
       "base-uri 'none'; form-action 'none'")
_TEMPLATES = Path(__file__).parent / "templates"
EXTENSIONS = {"md": Table.to_markdown, "tex": Table.to_latex, "csv": Table.to_csv, "json": Table.to_json}


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to write into; after the block it takes the place of `folder`, unless the block fails.

    The swap is two renames; the old folder is deleted only after the new one stands.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    old = stage.with_name(stage.name + "-old")
    try:
        stage.mkdir()
        yield stage
        if folder.exists():
            folder.rename(old)
        stage.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def environment(title: str, navigation: Sequence[tuple[str, str]], **more: Any) -> Environment:
    """Templates with what all pages know.

    Args:
        title: of the site. navigation: page → its label; the page of the same name is marked as current.
        more: further variables.
    """
    pages = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    pages.globals |= {
        "csp": CSP, "title": title, "navigation": navigation, "class_labels": figures.CLASS_LABELS, "home": "",
        "asset": {path.name: Markup(path.read_text(encoding="utf-8")) for path in _TEMPLATES.rglob("*.[cj]s*")},
        **more,
    }
    return pages


def write_forms(tables: Iterable[Table], folder: Path) -> None:
    """Every table as Markdown, LaTeX, CSV and JSON."""
    for table in tables:
        for extension, convert in EXTENSIONS.items():
            (folder / f"{table.name}.{extension}").write_text(convert(table), encoding="utf-8")


def embedded(value: Any) -> Markup:
    """JSON that is safe inside a `<script>` element: no character that could end or open markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def summaries(artifacts: Sequence[ArtifactRef]) -> Mapping[str, str]:
    """Key → its summary as text."""
    return {ref.key: json.dumps(dict(ref.summary), indent=2, ensure_ascii=False, default=str) for ref in artifacts}
