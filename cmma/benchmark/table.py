"""The table of a benchmark: on the terminal, and as table.json, table.md and table.csv."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as TerminalTable

from cmma.artifacts.files import write_json, write_text
from cmma.benchmark.runner import SHUFFLED, Results
from cmma.report.tables import Cell, Row, Table, text_cell

_ARROWS = {"up": "↑", "down": "↓", "": ""}


def to_table(results: Results) -> Table:
    """Metrics as rows; methods, controls and the value at chance as columns."""
    heads = [f"{SHUFFLED} ({results.shuffled_method})" if row == SHUFFLED else row for row in results.values]
    rows = []
    for name, metric in results.metrics.items():
        cells = [_cell(results, row, name, metric.digits) for row in results.values]
        chance = results.chance.get(name)
        cells.append(text_cell("–") if chance is None else Cell(value=chance, digits=metric.digits))
        rows.append(Row(f"{name} {_ARROWS[metric.better]}".strip(), tuple(cells)))
    n = len(results.seeds)
    spread = f"mean [95% Student t interval over {n} seeds]" if n > 1 else "one seed: no intervals"
    note = (f"{spread}; – not defined. The shuffled column scores what {results.shuffled_method} found against "
            "permuted truth. Definitions: docs/testbed_tasks.md.")
    return Table(f"benchmark-{results.config.task}", results.title, ("metric", *heads, "chance"), tuple(rows), note)


def _cell(results: Results, row: str, metric: str, digits: int) -> Cell:
    interval = results.interval(row, metric)
    if interval.n == 0:
        return text_cell("–")
    return Cell(interval.value, interval.low, interval.high, digits=digits)


def write_results(results: Results, folder: Path) -> None:
    """Write the three files. The JSON holds every value of every seed, the definitions and the configuration."""
    table = to_table(results)
    write_json(folder / "table.json", {
        "format": 1, "task": results.config.task, "title": results.title, "model": results.model,
        "config": asdict(results.config),
        "seeds": list(results.seeds), "shuffled_method": results.shuffled_method, "chance": results.chance,
        "metrics": {name: asdict(metric) for name, metric in results.metrics.items()},
        "rows": {
            row: {name: results.interval(row, name).as_dict() | {"seeds": each} for name, each in values.items()}
            for row, values in results.values.items()
        },
        "seconds": results.seconds,
    })
    write_text(folder / "table.md", table.to_markdown())
    write_text(folder / "table.csv", table.to_csv())


def print_results(results: Results) -> None:
    """One table on the terminal: the half-width of the interval behind ±."""
    table = to_table(results)
    shown = TerminalTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                          caption=table.note, caption_justify="left")
    shown.add_column(table.columns[0], no_wrap=True)
    for column in table.columns[1:]:
        shown.add_column(column.replace(" (", "\n(").replace("_", "\n"), justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(row.label, *map(_short, row.cells))
    # As wide as it needs to be: a narrow terminal wraps lines, but no column is lost.
    wide = Console(width=500)
    Console(width=Measurement.get(wide, wide.options, shown).maximum).print(shown)


def _short(cell: Cell) -> str:
    if cell.low is None or cell.high is None or cell.low != cell.low:
        return cell.number()
    half_width = f"{(cell.high - cell.low) / 2:.{cell.digits}f}"
    return f"{cell.number()} ±{half_width.removeprefix('0')}"
