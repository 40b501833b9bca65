"""The site over all tables of the paper: an overview, a page for each, a report for each model, and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cmma.report import plots
from cmma.report.inputs import Chapter, TablesInputs
from cmma.report.pages import EXTENSIONS, environment, replaced, summaries, write_forms
from cmma.report.site import write_report
from cmma.report.tables import Cell, anchor


def write_tables(inputs: TablesInputs, folder: Path) -> Path:
    """Write every table in four forms beside its page, then put the folder in place at once.

    Args:
        inputs: what to show.
        folder: target, for example `outputs/tables`; what an older call wrote there is replaced.

    Returns:
        The path of `index.html`.
    """
    navigation = [("index", "Overview"), *((chapter.name, chapter.name) for chapter in inputs.chapters),
                  ("provenance", "Provenance")]
    pages = environment(inputs.title, navigation, model={}, commands={})
    with replaced(folder) as stage:

        def write(name: str, template: str, **context: Any) -> None:
            text = pages.get_template(template).render(root="", page=name, inputs=inputs, **context)
            (stage / f"{name}.html").write_text(text, encoding="utf-8")

        for chapter in inputs.chapters:
            write_forms(chapter.tables, stage)
            write(chapter.name, "chapter.html", chapter=chapter, state=state(chapter), extensions=list(EXTENSIONS),
                  shown=[plots.draw(each) for each in chapter.figures],
                  tables=[(table.name, Markup(table.to_html("provenance.html#"))) for table in chapter.tables])
        write("index", "tables.html", states={each.name: state(each) for each in inputs.chapters},
              facts={each.name: _facts(each) for each in inputs.chapters})
        write("provenance", "provenance.html", summaries=summaries(inputs.artifacts), groups=_groups(inputs.chapters))
        for model, report in inputs.models.items():
            write_report(report.inputs, stage / "models" / model, report.tau, home="../../index.html")
    return folder / "index.html"


def state(chapter: Chapter) -> str:
    """Whether every cell of ours is measured; people are not a command's to find."""
    cells = [cell for table in chapter.tables for row in table.rows if row.source != "paper" for cell in row.cells]
    missing = [cell for cell in cells if not cell.measured]
    if not any(cell.artifact for cell in cells):
        return "not measured"
    if any(not cell.kind for cell in missing):
        return f"cells not measured: {sum(not cell.kind for cell in missing)}"
    reasons = dict.fromkeys(cell.kind for cell in missing)
    return f"complete, but for: {', '.join(reasons)}" if reasons else "complete"


def _facts(chapter: Chapter) -> tuple[str, str]:
    """Seeds and devices behind its parts."""
    seeds = dict.fromkeys(table.seeds() for table in chapter.tables if table.sources)
    devices = dict.fromkeys(table.devices() for table in chapter.tables if table.sources)
    return "; ".join(seeds), "; ".join(devices)


def _groups(chapters: Sequence[Chapter]) -> list[tuple[str, list[str]]]:
    """Anchor and keys of every cell that rests on several artifacts."""
    cells: list[Cell] = [cell for chapter in chapters for table in chapter.tables for cell in table.cells]
    several = dict.fromkeys(cell.artifact for cell in cells if " " in cell.artifact)
    return [(anchor(artifact), artifact.split()) for artifact in several]
