"""One table, five forms: Markdown, LaTeX, CSV, JSON and HTML.

A cell knows what it holds: a number with its interval, what kind of interval that is, how many units it rests on and
which artifacts it came from; or that nobody measured it, and the command that would. A table knows the seeds and the
devices of those artifacts.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
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
        kind: what the interval or the ± is ("95% CI", "SE", "SD over 5 seeds", ...), or why there is none; of a missing
            value, why no command measures it ("needs people").
        n: number of independent units (images, seeds, pairs).
        unit: printed behind the number ("%" or "").
        digits: decimals to print.
        artifact: key of the artifact that holds the measurement; of a mean over several, all keys, spaces between.
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
        """The value alone, with its unit; "not measured", and why, when missing."""
        if self.value is None or not self.measured:
            return f"{NOT_MEASURED}: {self.kind}" if self.kind else NOT_MEASURED
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
            return f"{self.number()} (`{self.command}`)" if self.command else self.number()
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
class Source:
    """What a key in a cell stands for: an artifact's stage, its seeds ("0, 1") and the device that it was made on."""

    key: str
    stage: str
    seeds: str
    device: str


@dataclass(frozen=True)
class Table:
    """A titled table. `columns[0]` heads the row labels; each row has `len(columns) - 1` cells.

    Attributes:
        sources: of the keys in its cells. What they say is printed below the table; where cells differ, a number in the
            cell tells which of them.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns) - 1:
                raise ValueError(f"table {self.name!r}: row {row.label!r} has {len(row.cells)} cells, "
                                 f"the header has {len(self.columns) - 1}")

    @property
    def cells(self) -> list[Cell]:
        """All of them, row by row."""
        return [cell for row in self.rows for cell in row.cells]

    def seeds(self) -> str:
        """The seeds behind its numbers: "0, 1, 2"."""
        return _joined(each.seeds for each in self.sources)

    def devices(self) -> str:
        """What its numbers were computed on."""
        return _joined(each.device for each in self.sources)

    def _origins(self) -> dict[str, str]:
        """Keys of a cell → what they are; in order."""
        known = {each.key: each for each in self.sources}
        found = {}
        for artifact in dict.fromkeys(cell.artifact for cell in self.cells if cell.measured):
            own = [known[key] for key in artifact.split() if key in known]
            if own:
                stages, seeds, devices = (_joined(getattr(each, name) for each in own)
                                          for name in ("stage", "seeds", "device"))
                found[artifact] = f"{stages} {' '.join(each.key for each in own)} ({_seeds(seeds)}; {devices})"
        return found

    def to_markdown(self) -> str:
        """GitHub table with title, note and sources; pipes escaped."""
        origins = self._origins()
        marks = {keys: f" <sup>{number}</sup>" for number, keys in enumerate(origins, 1)} if len(origins) > 1 else {}

        def line(parts: Sequence[str]) -> str:
            return "| " + " | ".join(part.replace("|", "\\|").replace("\n", " ") for part in parts) + " |"

        body = [line([row.label, *(cell.text() + marks.get(cell.artifact, "") for cell in row.cells)])
                for row in self.rows]
        rule = "|" + "|".join([" --- ", *([" ---: "] * (len(self.columns) - 1))]) + "|"
        parts = [f"**{self.title}**", "", line(self.columns), rule, *body]
        parts += ["", self.note] if self.note else []
        if origins:
            parts += ["", "From " + "; ".join(marks.get(keys, "").strip() + " " * bool(marks) + text
                                              for keys, text in origins.items()) + "."]
        return "\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """A booktabs `table` environment, special characters escaped; remarks, commands and sources below it."""
        def tex(text: str) -> str:
            return text.translate(_LATEX)

        def line(parts: Sequence[str]) -> str:
            return "  " + " & ".join(parts) + r" \\"

        origins, remarks = self._origins(), _marks(self.cells)
        numbers = {keys: str(number) for number, keys in enumerate(origins, 1)} if len(origins) > 1 else {}

        def value(cell: Cell) -> str:
            marks = ",".join(filter(None, (remarks.get(cell.remark()), numbers.get(cell.artifact))))
            return tex(" ".join(filter(None, (cell.number(), cell.spread())))) + (f"$^{{{marks}}}$" if marks else "")

        notes = [f"$^{{{mark}}}$ {tex(remark)}" for remark, mark in remarks.items()]
        notes += [rf"{NOT_MEASURED}: \texttt{{{tex(command)}}}" for command in _commands(self.cells)]
        notes += [(f"$^{{{numbers[keys]}}}$ " if numbers else "from ") + tex(text) for keys, text in origins.items()]
        return "\n".join([
            r"\begin{table}[t]", r"  \centering", rf"  \caption{{{tex(self.title)}. {tex(self.note)}}}",
            rf"  \label{{tab:{self.name}}}", rf"  \begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            r"  \toprule", line([tex(column) for column in self.columns]), r"  \midrule",
            *(line([tex(row.label), *map(value, row.cells)]) for row in self.rows),
            r"  \bottomrule", r"  \end{tabular}",
            *([rf"  \par\smallskip\footnotesize {'; '.join(notes)}."] if notes else []), r"\end{table}", "",
        ])

    def to_csv(self) -> str:
        """Long form: one line per cell, all its fields, seeds and devices."""
        out = io.StringIO()
        fields = list(asdict(Cell()))
        known = {each.key: each for each in self.sources}
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["table", "row", "source", "column", *fields, "seeds", "device"])
        for row in self.rows:
            for column, cell in zip(self.columns[1:], row.cells, strict=True):
                record = asdict(cell)
                own = [known[key] for key in cell.artifact.split() if key in known]
                writer.writerow([self.name, row.label, row.source, column, *(_plain(record[f]) for f in fields),
                                 _joined(each.seeds for each in own), _joined(each.device for each in own)])
        return out.getvalue()

    def to_json(self) -> str:
        """The whole table as JSON; NaN becomes null."""
        record = asdict(self)
        for row in record["rows"]:
            row["cells"] = [{key: _plain(value) for key, value in cell.items()} for cell in row["cells"]]
        return json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)

    def to_html(self, artifact_link: str = "") -> str:
        """A `<table>`, everything escaped. With `artifact_link` ("provenance.html#") values link to their `anchor`.

        What each interval is stands below the table, marked by letters; so does the command that would measure the
        missing cells, when it is the same for all.
        """
        marks, commands = _marks(self.cells), _commands(self.cells)
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
        if self.sources:
            notes.append(f"{_seeds(escape(self.seeds()))}; computed on {escape(self.devices())}")
        note = f"<figcaption>{' · '.join(notes)}</figcaption>" if notes else ""
        return (f'<figure class="table" id="table-{escape(self.name)}"><h3>{escape(self.title)}</h3>'
                f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
                f"{note}</figure>")


def anchor(artifact: str) -> str:
    """The target on the page of provenance of a cell's key or keys."""
    return "_".join(artifact.split())


def _joined(values: Iterable[str]) -> str:
    """Distinct parts of comma-separated texts, in order."""
    return ", ".join(dict.fromkeys(part for value in values for part in value.split(", ") if part))


def _seeds(numbers: str) -> str:
    return f"{'seeds' if ',' in numbers else 'seed'} {numbers}"


def _marks(cells: Sequence[Cell]) -> dict[str, str]:
    """Remark → letter: a, b, …, z, aa, bb."""
    remarks = dict.fromkeys(cell.remark() for cell in cells if cell.remark())
    return {remark: chr(ord("a") + number % 26) * (1 + number // 26) for number, remark in enumerate(remarks)}


def _commands(cells: Sequence[Cell]) -> list[str]:
    """What would measure the missing ones."""
    return sorted({cell.command for cell in cells if not cell.measured and cell.command})


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


def _html_cell(cell: Cell, artifact_link: str, marks: dict[str, str], kind: str, show_command: bool) -> str:
    if not cell.measured:
        command = f"<code>{escape(cell.command)}</code>" if cell.command and show_command else ""
        words = f"<em>{escape(cell.number())}</em>"
        return f'<td class="missing {kind}" title="{escape(cell.command)}">{words}{command}</td>'
    number = escape(cell.number())
    if cell.artifact and artifact_link:
        number = f'<a href="{escape(artifact_link + anchor(cell.artifact))}">{number}</a>'
    spread = f' <span class="spread">{escape(cell.spread())}</span>' if cell.spread() else ""
    mark = f"<sup>{marks[cell.remark()]}</sup>" if cell.remark() else ""
    return f'<td class="{kind}">{number}{spread}{mark}</td>'
