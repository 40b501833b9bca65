"""One table, five forms: Markdown, LaTeX, CSV, JSON and HTML.

A cell knows what it holds: a number with its interval, what kind of interval that is, how many units it rests on and
which artifact it came from; or that nobody measured it, and the command that would.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

NOT_MEASURED = "not measured"
_LATEX = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "→": r"$\rightarrow$", "²": r"$^2$", "≤": r"$\leq$",
    "α": r"$\alpha$", "γ": r"$\gamma$", "η": r"$\eta$", "κ": r"$\kappa$", "σ": r"$\sigma$", "τ": r"$\tau$",
})


@dataclass(frozen=True)
class Cell:
    """One measured, quoted or missing value.

    Attributes:
        value: a number, a text, or None for *not measured*.
        low, high: interval bounds in the unit of `value`.
        error: half-width printed behind ±; used when the bounds are not known.
        kind: what the interval or the ± is ("95% CI", "SE", "SD over 5 seeds", ...), or why there is none.
        n: number of independent units (images, seeds, pairs).
        unit: printed behind the number ("%" or "").
        digits: decimals to print.
        artifact: key of the artifact that holds the measurement.
        command: the command that would measure it, when it is missing.
    """

    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    kind: str = ""
    n: int | None = None
    unit: str = ""
    digits: int = 2
    artifact: str = ""
    command: str = ""

    @property
    def measured(self) -> bool:
        """False for a missing value; NaN counts as missing."""
        return self.value is not None and not (isinstance(self.value, float) and math.isnan(self.value))

    def number(self) -> str:
        """The value alone, with its unit; "not measured" when missing."""
        if self.value is None or not self.measured:
            return NOT_MEASURED
        return self.value if isinstance(self.value, str) else _number(self.value, self.digits) + self.unit

    def spread(self) -> str:
        """The interval "[low, high]" or "± error" without its kind; empty when there is none."""
        if not self.measured:
            return ""
        if self.low is not None and self.high is not None and not (math.isnan(self.low) or math.isnan(self.high)):
            return f"[{_number(self.low, self.digits)}, {_number(self.high, self.digits)}]"
        return f"± {_number(self.error, self.digits)}" if self.error is not None and not math.isnan(self.error) else ""

    def remark(self) -> str:
        """What the interval is (or another word on the value) and what it rests on: "95% CI, n = 300"."""
        parts = [self.kind, f"n = {self.n:,}" if self.n is not None else ""]
        return ", ".join(part for part in parts if part) if self.measured else ""

    def text(self) -> str:
        """One line for plain-text tables: "34.2% [30.1, 38.0] (95% CI, n = 300)"."""
        if not self.measured:
            return f"{NOT_MEASURED} (`{self.command}`)" if self.command else NOT_MEASURED
        remark = self.remark()
        return " ".join(part for part in (self.number(), self.spread(), f"({remark})" if remark else "") if part)


def text_cell(text: object) -> Cell:
    """A cell that holds words."""
    return Cell(value=str(text))


def missing(command: str = "") -> Cell:
    """A cell that nobody measured, with the command that would."""
    return Cell(command=command)


@dataclass(frozen=True)
class Row:
    """A labelled row; `source` separates ours from the paper's reference rows."""

    label: str
    cells: tuple[Cell, ...]
    source: str = "ours"


@dataclass(frozen=True)
class Table:
    """A titled table. `columns[0]` heads the row labels; each row has `len(columns) - 1` cells."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns) - 1:
                raise ValueError(f"table {self.name!r}: row {row.label!r} has {len(row.cells)} cells, "
                                 f"the header has {len(self.columns) - 1}")

    def to_markdown(self) -> str:
        """GitHub table with title and note; pipes escaped."""
        def line(parts: Sequence[str]) -> str:
            return "| " + " | ".join(part.replace("|", "\\|").replace("\n", " ") for part in parts) + " |"

        body = [line([row.label, *(cell.text() for cell in row.cells)]) for row in self.rows]
        rule = "|" + "|".join([" --- ", *([" ---: "] * (len(self.columns) - 1))]) + "|"
        parts = [f"**{self.title}**", "", line(self.columns), rule, *body]
        return "\n".join(parts + (["", self.note] if self.note else [])) + "\n"

    def to_latex(self) -> str:
        """A booktabs `table` environment, special characters escaped."""
        def tex(text: str) -> str:
            return text.translate(_LATEX)

        def line(parts: Sequence[str]) -> str:
            return "  " + " & ".join(parts) + r" \\"

        body = [line([tex(row.label), *(tex(_latex_cell(cell)) for cell in row.cells)]) for row in self.rows]
        return "\n".join([
            r"\begin{table}[t]", r"  \centering", rf"  \caption{{{tex(self.title)}. {tex(self.note)}}}",
            rf"  \label{{tab:{self.name}}}", rf"  \begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            r"  \toprule", line([tex(column) for column in self.columns]), r"  \midrule", *body,
            r"  \bottomrule", r"  \end{tabular}", r"\end{table}", "",
        ])

    def to_csv(self) -> str:
        """Long form: one line per cell, all its fields."""
        out = io.StringIO()
        fields = list(asdict(Cell()))
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["table", "row", "source", "column", *fields])
        for row in self.rows:
            for column, cell in zip(self.columns[1:], row.cells, strict=True):
                record = asdict(cell)
                writer.writerow([self.name, row.label, row.source, column, *(_plain(record[f]) for f in fields)])
        return out.getvalue()

    def to_json(self) -> str:
        """The whole table as JSON; NaN becomes null."""
        record = asdict(self)
        for row in record["rows"]:
            row["cells"] = [{key: _plain(value) for key, value in cell.items()} for cell in row["cells"]]
        return json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)

    def to_html(self, artifact_link: str = "") -> str:
        """A `<table>`, everything escaped. With `artifact_link` ("provenance.html#") values link to their artifact.

        What each interval is stands below the table, marked by letters; so does the command that would measure the
        missing cells, when it is the same for all.
        """
        marks: dict[str, str] = {}
        for row in self.rows:
            for cell in row.cells:
                if cell.remark():
                    marks.setdefault(cell.remark(), chr(ord("a") + len(marks) % 26) * (1 + len(marks) // 26))
        cells = [cell for row in self.rows for cell in row.cells]
        commands = sorted({cell.command for cell in cells if not cell.measured and cell.command})
        wordy = [any(isinstance(row.cells[i].value, str) for row in self.rows if row.source != "paper")
                 for i in range(len(self.columns) - 1)]
        heads = "".join(f'<th scope="col" class="{"words" if words else "number"}">{escape(column)}</th>'
                        for column, words in zip(self.columns, [True, *wordy], strict=True))
        rows = "\n".join(
            f'<tr class="from-{escape(row.source)}"><th scope="row">{escape(row.label)}</th>'
            + "".join(_html_cell(cell, artifact_link, marks, "words" if words else "number", len(commands) > 1)
                      for cell, words in zip(row.cells, wordy, strict=True)) + "</tr>"
            for row in self.rows
        )
        notes = [f"<sup>{mark}</sup> {escape(remark)}" for remark, mark in marks.items()]
        notes += [escape(self.note)] if self.note else []
        if len(commands) == 1:
            notes.append(f"{NOT_MEASURED}: <code>{escape(commands[0])}</code>")
        note = f"<figcaption>{' · '.join(notes)}</figcaption>" if notes else ""
        return (f'<figure class="table" id="table-{escape(self.name)}"><h3>{escape(self.title)}</h3>'
                f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
                f"{note}</figure>")


def _number(value: float, digits: int) -> str:
    """Fixed decimals with a true minus; integers without decimals; scientific where decimals would show nothing."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if digits == 0 or isinstance(value, int):
        text = f"{value:,.0f}"
    elif value != 0 and (abs(value) < 0.5 * 10.0 ** -digits or abs(value) >= 1e7):
        text = f"{value:.1e}"
    else:
        text = f"{value:,.{digits}f}"
    return text.replace("-", "−")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _latex_cell(cell: Cell) -> str:
    return " ".join(part for part in (cell.number(), cell.spread()) if part)


def _html_cell(cell: Cell, artifact_link: str, marks: dict[str, str], kind: str, show_command: bool) -> str:
    if not cell.measured:
        command = f"<code>{escape(cell.command)}</code>" if cell.command and show_command else ""
        return f'<td class="missing {kind}" title="{escape(cell.command)}"><em>{NOT_MEASURED}</em>{command}</td>'
    number = escape(cell.number())
    if cell.artifact and artifact_link:
        number = f'<a href="{escape(artifact_link + cell.artifact)}">{number}</a>'
    spread = f' <span class="spread">{escape(cell.spread())}</span>' if cell.spread() else ""
    mark = f"<sup>{marks[cell.remark()]}</sup>" if cell.remark() else ""
    return f'<td class="{kind}">{number}{spread}{mark}</td>'
