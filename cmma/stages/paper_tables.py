"""The tables of the paper: from finished artifacts to cells beside the paper's numbers.

A cell whose artifact is not there says which command makes it; means over seeds name all of their artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from cmma.artifacts.files import read_json
from cmma.artifacts.store import Artifact
from cmma.features.specialisation import CLASSES
from cmma.report import comparison, references
from cmma.report.inputs import ReportInputs
from cmma.report.tables import Cell, Row, Table, missing, text_cell
from cmma.stages.benchmark import results_folder
from cmma.stages.cells import (
    baseline_cells,
    consistency_cells,
    control_cells,
    hallucination_cells,
    network_cells,
    phases_cells,
)
from cmma.stages.tables_plan import Wanted
from cmma.statistics.student import student_mean

Runs = Sequence[Wanted]
_NONE = text_cell("–")


@dataclass(frozen=True)
class PaperTable:
    """A table: the run of the plan that it is read from, and how; `command` makes what is missing."""

    run: str
    build: Callable[[Runs, str], list[Table]]


def specialisation(runs: Runs, command: str) -> list[Table]:
    """Table 1: mean over seeds with their standard deviation, in percent of the live features."""
    rows = []
    for model, own in _by_model(runs).items():
        shares = pd.DataFrame([made.summary["shares"] for made in _finished(own)])
        cells = [_over_seeds(shares[name], own) if len(shares) else missing(command)
                 for name in (*CLASSES, "dead")]
        rows.append(Row(model, tuple(cells)))
    rows += [Row(f"{model} (paper)", (*cells.values(), _NONE), "paper") for model, cells in references.TABLE_1.items()]
    return [Table(
        "table1", "Feature specialisation (paper, Table 1)",
        ("model", "visual", "textual", "cross-modal", "mixed", "dead"), tuple(rows),
        "Percent of live features; dead features are in no class and in percent of all.",
    )]  # fmt: skip


def control(runs: Runs, command: str) -> list[Table]:
    """Table 2, once for every model."""
    tables = []
    for model, own in _by_model(runs).items():
        found = control_cells(own[0].artifact) if _finished(own) else {}
        table = comparison.control(ReportInputs(control=found, commands={"control": command}))
        tables.append(Table(f"table2-{model}", f"{table.title}, {model}", table.columns, table.rows, table.note))
    return tables


def hallucination(runs: Runs, command: str) -> list[Table]:
    """Section 5.5.1: mean over dictionaries with Student's t interval; and every condition beside it."""
    done = _finished(runs)
    ours = [hallucination_cells(made, _split(each)) for each, made in zip(_with_artifact(runs), done, strict=True)]
    names = dict.fromkeys([*references.HALLUCINATION, *(name for cells in ours for name in cells)])
    rows = []
    for name in names:
        cells = [cells[name] for cells in ours if name in cells]
        rows.append(Row(name, (_mean(cells, runs, command), references.HALLUCINATION.get(name, _NONE))))
    table = Table(
        "hallucination", "Change of the hallucination rate (paper, 5.5.1)", ("", "this run", "paper"), tuple(rows),
        "Held-out images of the biased split; features and strength were chosen on other images.")
    return [table, _conditions(runs, command)]


def _conditions(runs: Runs, command: str) -> Table:
    """What every steering and control changes: percent of the rate, points of recall and accuracy."""
    columns = {"object": ("hallucinated objects", "%"), "recall": ("recall", " points"),
               "accuracy": ("question accuracy", " points")}  # fmt: skip
    frames = []
    for each, made in zip(_with_artifact(runs), _finished(runs), strict=True):
        test = made.read_table("test.parquet")
        frames.append(test[test["split"] == _split(each)].set_index(["condition", "metric"])["change"])
    rows = []
    for name in dict.fromkeys(condition for frame in frames for condition, _ in frame.index if condition != "clean"):
        cells = []
        for metric, (_, unit) in columns.items():
            values = [frame[name, metric] for frame in frames if (name, metric) in frame.index]
            scale = 1 if unit == "%" else 100
            cells.append(_mean([Cell(scale * value, unit=unit) for value in values], runs, command))
        rows.append(Row(name, tuple(cells), "ours" if name.startswith("features") else "control"))
    rows = rows or [Row("all", tuple(missing(command) for _ in columns))]
    return Table(
        "hallucination-conditions", "Hallucination: features, published ways and controls",
        ("condition", *(head for head, _ in columns.values())), tuple(rows), "Change against the unsteered model.")


def consistency(runs: Runs, command: str) -> list[Table]:
    """Section 5.5.2, one column per model."""
    title = "Semantic consistency: change of the CLIP-Score under amplification (paper, 5.5.2)"
    return [_models_beside(
        "consistency", title, runs, command,
        lambda made: consistency_cells(made) if made.path("consistency.parquet").is_file() else {},
        references.CONSISTENCY,
    )]  # fmt: skip


def graph(runs: Runs, command: str) -> list[Table]:
    """Section 5.2, one column per model."""
    return [_models_beside("cmig", "Cross-modal interaction graph (paper, 5.2)", runs, command, network_cells,
                           references.NETWORK)]  # fmt: skip


def phases(runs: Runs, command: str) -> list[Table]:
    """Section 5.4 over all units, and the activity of every model by thirds."""
    done = _finished(runs)
    cells = phases_cells(done[0], None) if done else {}
    names = dict.fromkeys([*references.PHASES, *cells])
    rows = [Row(name, (cells.get(name, missing(command)), references.PHASES.get(name, _NONE))) for name in names]
    tables = [Table("phases", "Three phases (paper, 5.4)", ("", "this run", "paper"), tuple(rows))]
    for made in done:
        layers = made.read_table("layers.parquet")
        for model, own in layers.groupby("model", sort=False):
            by_layer = own.groupby("layer")
            lines = [Row(f"layer {layer}", (
                Cell(some["activity"].mean(), some["activity_low"].mean(), some["activity_high"].mean(),
                     kind="95% over samples, mean over seeds", n=len(some), digits=3, artifact=made.key),
                *(Cell(some[name].mean(), unit="%", digits=1, n=len(some), artifact=made.key) for name in CLASSES),
            )) for layer, some in by_layer]  # fmt: skip
            tables.append(Table(
                f"phases-{model}", f"{model}: cross-modal activity and classes by layer",
                ("", "cross-modal activity", "visual", "textual", "cross-modal", "mixed"), tuple(lines),
                "Mean over seeds; classes in percent of the live features."))
    return tables


def ablation(runs: Runs, command: str) -> list[Table]:
    """What each part of M-SAE buys where the truth is planted: mean over worlds with Student's t interval."""
    tables = []
    for each in runs:
        file = results_folder(each.config) / "table.json"
        title, columns = "Ablation on planted activations", ("metric", "this run")
        rows = [Row("all", (missing(command),))]
        if file.is_file():
            found = read_json(file)
            columns = ("metric", *found["rows"])
            rows = [Row(name, tuple(
                Cell(own[name]["value"], own[name]["low"], own[name]["high"], kind=own[name]["kind"], n=own[name]["n"],
                     digits=metric["digits"], artifact=file.parent.name)
                for own in found["rows"].values())) for name, metric in found["metrics"].items()]  # fmt: skip
        tables.append(Table("ablation", title, columns, tuple(rows), "Definitions: docs/testbed_tasks.md."))
    return tables


def baselines(runs: Runs, command: str) -> list[Table]:
    """M-SAE beside six baselines, once for every model."""
    tables = []
    for model, own in _by_model(runs).items():
        found, controls = baseline_cells(own[0].artifact) if _finished(own) else ({}, [])
        inputs = ReportInputs(baselines=found, baseline_controls=controls, commands={"baselines": command})
        tables.append(replace(comparison.baselines(inputs), name=f"baselines-{model}"))
    return tables


TABLES: Mapping[str, PaperTable] = {
    "table1": PaperTable("specialisation", specialisation),
    "table2": PaperTable("control", control),
    "hallucination": PaperTable("mitigation", hallucination),
    "consistency": PaperTable("consistency", consistency),
    "phases": PaperTable("phases", phases),
    "cmig": PaperTable("graph", graph),
    "ablation": PaperTable("ablation", ablation),
    "baselines": PaperTable("baselines", baselines),
}


def _models_beside(
    name: str, title: str, runs: Runs, command: str, cells_of: Callable[[Artifact], dict[str, Cell]],
    paper: Mapping[str, Cell],
) -> Table:  # fmt: skip
    """The paper's names as rows, then what only we measured; one column per model, then the paper's."""
    columns = {}
    for each in runs:
        columns[str(each.values["model"])] = cells_of(each.artifact) if each.artifact.finished else {}
    names = dict.fromkeys([*paper, *(key for cells in columns.values() for key in cells)])
    rows = tuple(
        Row(key, (*(cells.get(key, missing(command)) for cells in columns.values()),
                  paper.get(key, _NONE)))
        for key in names
    )  # fmt: skip
    return Table(name, title, ("", *columns, "paper"), rows)


def _by_model(runs: Runs) -> dict[str, list[Wanted]]:
    found: dict[str, list[Wanted]] = {}
    for each in runs:
        found.setdefault(str(each.values["model"]), []).append(each)
    return found


def _with_artifact(runs: Runs) -> list[Wanted]:
    return [each for each in runs if each.artifact.finished]


def _finished(runs: Runs) -> list[Artifact]:
    return [each.artifact for each in _with_artifact(runs)]


def _split(run: Wanted) -> str:
    return run.config.mitigation.split


def _over_seeds(values: pd.Series, runs: Runs) -> Cell:
    """Mean and standard deviation, as the paper's Table 1."""
    n = len(values)
    return Cell(
        float(values.mean()), error=float(values.std(ddof=1)) if n > 1 else None,
        kind=f"SD over {n} seeds" if n > 1 else "one seed", n=n, unit="%", digits=1,
        artifact=" ".join(made.key for made in _finished(runs)),
    )  # fmt: skip


def _mean(cells: Sequence[Cell], runs: Runs, command: str) -> Cell:
    """Mean of numbers, one per dictionary, with Student's t interval; a word where it is not defined."""
    if not cells:
        return missing(command)
    values = [cell.value for cell in cells if isinstance(cell.value, float)]
    if not values:
        return cells[0]
    found = student_mean(values)
    return Cell(found.value, found.low, found.high, kind=f"{found.kind} over {found.n} dictionaries", n=found.n,
                unit=cells[0].unit, digits=1, artifact=" ".join(made.key for made in _finished(runs)))  # fmt: skip
