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
    measured,
    network_cells,
    phases_cells,
)
from cmma.stages.report_inputs import figures_of
from cmma.stages.tables_plan import Wanted
from cmma.statistics.student import student_mean

Runs = Sequence[Wanted]
_NONE = text_cell("–")


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        runs: of the plan, that it is read from.
        build: what makes it of them; the command makes what is missing.
        headline: a row of the first part (empty: the first row), a column, and the paper's value of that cell.
    """

    runs: tuple[str, ...]
    build: Callable[[Runs, str], list[Table]]
    headline: tuple[str, int, Cell] = ("", 0, _NONE)


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
        "Percent of live features; dead features are in no class and in percent of all. n: seeds; their SD is in the "
        "CSV's and JSON's field error.",
    )]  # fmt: skip


def control(runs: Runs, command: str) -> list[Table]:
    """Table 2, once for every model."""
    tables = []
    for model, own in _by_model(runs).items():
        found, note = {}, ""
        for made in _finished(own):
            found, note = control_cells(made) if made.path("control.parquet").is_file() else {}, _unmeasured([made])
        table = comparison.control(ReportInputs(control=found, commands={"control": command}))
        tables.append(replace(table, name=f"table2-{model}", title=f"{table.title}, {model}", note=note))
    return tables


def hallucination(runs: Runs, command: str) -> list[Table]:
    """Section 5.5.1: mean over dictionaries with Student's t interval; and every condition beside it."""
    note = _unmeasured(_finished(runs))
    runs = [each for each in _with_artifact(runs) if each.artifact.path("test.parquet").is_file()]
    ours = [hallucination_cells(each.artifact, _split(each)) for each in runs]
    names = dict.fromkeys([*references.HALLUCINATION, *(name for cells in ours for name in cells)])
    rows = []
    for name in names:
        mean = _mean([cells[name] for cells in ours if name in cells], command)
        rows.append(Row(name, (mean, references.HALLUCINATION.get(name, _NONE))))
    table = Table(
        "hallucination", "Change of the hallucination rate (paper, 5.5.1)", ("", "this run", "paper"), tuple(rows),
        "Held-out images of the biased split; features and strength were chosen on other images.")
    return [table, _conditions(runs, command, note)]


def _conditions(runs: Runs, command: str, note: str) -> Table:
    """What every steering and control changes: percent of the rate, points of recall and accuracy."""
    columns = {"object": ("hallucinated objects", "%"), "recall": ("recall", " points"),
               "accuracy": ("question accuracy", " points")}  # fmt: skip
    frames = {}
    for each in runs:
        test = each.artifact.read_table("test.parquet")
        frames[each.artifact.key] = test[test["split"] == _split(each)].set_index(["condition", "metric"])["change"]
    found = dict.fromkeys(condition for frame in frames.values() for condition, _ in frame.index)
    rows = []
    for name in (condition for condition in found if condition != "clean"):
        cells = []
        for metric, (_, unit) in columns.items():
            scale = 1 if unit == "%" else 100
            cells.append(_mean([Cell(scale * frame[name, metric], unit=unit, digits=1, artifact=key)
                                for key, frame in frames.items() if (name, metric) in frame.index], command))
        rows.append(Row(name, tuple(cells), "ours" if name.startswith("features") else "control"))
    rows = rows or [Row("all", tuple(missing(command) for _ in columns))]
    return Table(
        "hallucination-conditions", "Hallucination: features, published ways and controls",
        ("condition", *(head for head, _ in columns.values())), tuple(rows),
        " ".join(filter(None, ("Change against the unsteered model.", note))))


def consistency(runs: Runs, command: str) -> list[Table]:
    """Section 5.5.2, one column per model."""
    title = "Semantic consistency: change of the CLIP-Score under amplification (paper, 5.5.2)"
    return [_models_beside(
        "consistency", title, runs, command,
        lambda made: consistency_cells(made) if made.path("consistency.parquet").is_file() else {},
        references.CONSISTENCY,
    )]  # fmt: skip


def tracing(runs: Runs, command: str) -> list[Table]:
    """Where the causal maps of a model peak (the paper prints no numbers of it), once for every model."""
    tables = []
    for model, own in _by_model(runs).items():
        shown = [figure for made in _finished(own) for figure in figures_of(made)]
        table = comparison.causal_trace(ReportInputs(causal=shown, commands={"trace": command}))
        tables.append(replace(table, name=f"tracing-{model}", title=f"{table.title}, {model}"))
    return tables


def graph(runs: Runs, command: str) -> list[Table]:
    """Section 5.2, one column per model."""
    return [_models_beside("cmig", "Cross-modal interaction graph (paper, 5.2)", runs, command, network_cells,
                           references.NETWORK)]  # fmt: skip


def phases(runs: Runs, command: str) -> list[Table]:
    """Section 5.4 over all units, and the activity of every model by thirds."""
    done = _finished(_of("phases", runs))
    graphs = _with_artifact(_of("build-cmig", runs))[:1]
    cells = phases_cells(done[0], graphs[0].artifact if graphs else None) if done else {}
    absent = dict.fromkeys(references.PHASES, missing(command)) | {
        "phase 3: CLIP-Score": Cell(kind="not a number of a phase", command="cmma evaluate")}
    rows = [Row(name, (cell, references.PHASES.get(name, _NONE))) for name, cell in (absent | cells).items()]
    note = "".join(f"The visual-to-text ratio is that of the graph of {each.values['model']}." for each in graphs)
    tables = [Table("phases", "Three phases (paper, 5.4)", ("", "this run", "paper"), tuple(rows), note)]
    for made in done:
        layers = made.read_table("layers.parquet")
        for model, own in layers.groupby("model", sort=False):
            by_layer = own.groupby("layer")
            lines = [Row(f"layer {layer}", (
                Cell(some["activity"].mean(), some["activity_low"].mean(), some["activity_high"].mean(),
                     kind="95% over samples, mean over seeds", n=len(some), digits=3, artifact=made.key),
                *(measured(shares.value, shares.low, shares.high, kind=shares.kind, unit="%", digits=1,
                           n=shares.n, artifact=made.key)
                  for shares in (student_mean(some[name]) for name in CLASSES)),
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
                measured(own[name]["value"], own[name]["low"], own[name]["high"], digits=metric["digits"],
                         kind=own[name]["kind"] if own[name]["n"] else "", n=own[name]["n"], artifact=file.parent.name)
                for own in found["rows"].values())) for name, metric in found["metrics"].items()]  # fmt: skip
        tables.append(Table("ablation", title, columns, tuple(rows),
                            "n: planted worlds, one for each seed. Definitions: docs/testbed_tasks.md."))
    return tables


def baselines(runs: Runs, command: str) -> list[Table]:
    """M-SAE beside six baselines, once for every model."""
    tables = []
    for model, own in _by_model(runs).items():
        found, controls = _compared(own)
        inputs = ReportInputs(baselines=found, baseline_controls=controls, commands={"baselines": command})
        table = comparison.baselines(inputs)
        tables.append(replace(table, name=f"baselines-{model}", title=f"{table.title}, {model}"))
    return tables


def _compared(runs: Runs) -> tuple[dict[str, dict[str, Cell]], list[str]]:
    """Methods with their cells, and which of them are controls; of the first run that is there."""
    done = _finished(runs)
    return baseline_cells(done[0]) if done else ({}, [])


def interpretability(runs: Runs, command: str) -> list[Table]:
    """Section 5.6: people and without people, once for every model; and the features of every dictionary."""
    tables = []
    for model, own in _by_model(_of("baselines", runs)).items():
        found, controls = _compared(own)
        inputs = ReportInputs(baselines=found, baseline_controls=controls, commands={"baselines": command})
        table = comparison.interpretability(inputs)
        tables.append(replace(table, name=f"{table.name}-{model}", title=f"{table.title}, {model}"))
    rows = []
    for model, own in _by_model(_of("interpret", runs)).items():
        features = {made.key: made.read_table("features.parquet") for made in _finished(own)}
        rows.append(Row(model, tuple(
            _mean([Cell(float(table[name].agg(how)), digits=3, artifact=key)
                   for key, table in features.items() if name in table and table[name].notna().any()], command)
            for name, how in (("concept_auroc", "median"), ("iou", "mean")))))  # fmt: skip
    return [*tables, Table(
        "interpretability-features", "Interpretability without people: the features of every dictionary",
        ("model", "concept AUROC", "mask IoU"), tuple(rows),
        "AUROC of the concept that a feature tells best: median over live features, on samples that did not choose the "
        "concept. IoU with the concept's exact masks: mean over features that have a page.",
    )]  # fmt: skip


TABLES: Mapping[str, PaperTable] = {
    "table1": PaperTable(
        ("specialisation",), specialisation, ("", 2, references.TABLE_1["CLIP ViT-B/32"]["cross_modal"])),
    "table2": PaperTable(("control",), control, ("overall", 0, references.CONTROL["overall"]["success rate"])),
    "hallucination": PaperTable(("mitigation",), hallucination, ("object", 0, references.HALLUCINATION["object"])),
    "consistency": PaperTable(("consistency",), consistency, ("all", 0, references.CONSISTENCY["all"])),
    "interpretability": PaperTable(
        ("baselines", "specialisation"), interpretability,
        ("M-SAE", 1, references.INTERPRETABILITY["function identified by experts"])),
    "phases": PaperTable(
        ("phases", "graph"), phases,
        ("phase 3: cross-modal features", 0, references.PHASES["phase 3: cross-modal features"])),
    "tracing": PaperTable(("traces",), tracing),
    "cmig": PaperTable(("graph",), graph, ("strong pairs (I > 0.5)", 0, references.NETWORK["strong pairs (I > 0.5)"])),
    "ablation": PaperTable(("ablation",), ablation),
    "baselines": PaperTable(("baselines",), baselines, ("M-SAE", 0, _NONE)),
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


def _of(stage: str, runs: Runs) -> list[Wanted]:
    return [each for each in runs if each.stage == stage]


def _by_model(runs: Runs) -> dict[str, list[Wanted]]:
    found: dict[str, list[Wanted]] = {}
    for each in runs:
        found.setdefault(str(each.values["model"]), []).append(each)
    return found


def _with_artifact(runs: Runs) -> list[Wanted]:
    return [each for each in runs if each.artifact.finished]


def _finished(runs: Runs) -> list[Artifact]:
    return [each.artifact for each in _with_artifact(runs)]


def _unmeasured(artifacts: Sequence[Artifact]) -> str:
    """What stages left out, and why, as their summaries say."""
    found: dict[str, None] = {}
    for artifact in artifacts:
        reasons = artifact.summary.get("not_measured", {})
        lines = [reasons] if isinstance(reasons, str) else [f"{name}: {reason}" for name, reason in reasons.items()]
        found |= dict.fromkeys(lines)
    return f"Not measured: {'; '.join(found)}." if found else ""


def _split(run: Wanted) -> str:
    return run.config.mitigation.split


def _over_seeds(values: pd.Series, runs: Runs) -> Cell:
    """Mean with Student's t interval over seeds; the error is their standard deviation, as the paper prints it."""
    found = student_mean(values)
    return Cell(
        found.value, found.low, found.high, error=float(values.std(ddof=1)) if found.n > 1 else None,
        kind=f"{found.kind} over seeds" if found.n > 1 else "one seed", n=found.n, unit="%", digits=1,
        artifact=" ".join(made.key for made in _finished(runs)),
    )  # fmt: skip


def _mean(cells: Sequence[Cell], command: str) -> Cell:
    """Mean of numbers, one per dictionary, with Student's t interval; a single one as it is, a word where undefined."""
    if len(cells) < 2:
        return cells[0] if cells else missing(command)
    numbers = {cell.artifact: cell.value for cell in cells if isinstance(cell.value, float)}
    if not numbers:
        return replace(cells[0], artifact=" ".join(cell.artifact for cell in cells))
    found = student_mean(list(numbers.values()))
    return replace(cells[0], value=found.value, low=found.low, high=found.high, n=found.n,
                   kind=f"{found.kind} over {found.n} dictionaries", artifact=" ".join(numbers))  # fmt: skip
