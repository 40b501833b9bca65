"""The report's tables: what this run measured beside what the paper reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cmma.figures import HeatMap
from cmma.report import references
from cmma.report.inputs import ReportInputs
from cmma.report.tables import Cell, Row, Table, missing, text_cell

_NO_REFERENCE = text_cell("–")


def tables(inputs: ReportInputs) -> dict[str, Table]:
    """Every table of the report by name, in reading order."""
    made = [
        sae_quality(inputs), spliced(inputs), pairs(inputs), specialisation(inputs),
        _beside("hallucination", "Hallucination: change of the rate under intervention (paper, 5.5.1)",
                references.HALLUCINATION, inputs.hallucination, inputs.commands.get("mitigate", "")),
        evaluation(inputs), causal_trace(inputs), interventions(inputs),
        _beside("cmig", "Cross-modal interaction graph (paper, 5.2)",
                references.NETWORK, inputs.network, inputs.commands.get("build-cmig", "")),
        _beside("phases", "Three phases (paper, 5.4)",
                references.PHASES, inputs.phases, inputs.commands.get("phases", "")),
        _beside("consistency", "Semantic consistency: change of the CLIP-Score under amplification (paper, 5.5.2)",
                references.CONSISTENCY, inputs.consistency, inputs.commands.get("consistency", "")),
        control(inputs), baselines(inputs), interpretability(inputs),
    ]
    return {table.name: table for table in made}


def sae_quality(inputs: ReportInputs) -> Table:
    """One row per dictionary."""
    columns = {
        "n_latents": ("latents", 0, ""), "expansion": ("expansion", 1, "×"), "fvu": ("FVU", 3, ""),
        "fvu_visual": ("FVU visual", 3, ""), "fvu_textual": ("FVU textual", 3, ""), "l0_visual": ("L0 visual", 1, ""),
        "l0_textual": ("L0 textual", 1, ""), "gini": ("Gini", 3, ""), "cosine": ("cosine", 3, ""),
        "dead_fraction": ("dead", 3, ""), "n_records": ("of records", 0, ""),
    }
    command = inputs.commands.get("train-sae", "")
    rows = [
        Row(_label(record), tuple(
            _cell(record, key, digits, unit, command) for key, (_, digits, unit) in columns.items()))
        for record in _records(inputs.sae)
    ] or [Row("dictionary", (missing(command),) * len(columns))]
    return Table("sae", "Dictionary quality on held-out records",
                 ("dictionary", *(head for head, _, _ in columns.values())), tuple(rows),
                 "FVU: fraction of variance unexplained. L0: active latents per token. Gini: of a token's latents. "
                 "Dead: share of all latents that are silent on so many records.")


def spliced(inputs: ReportInputs) -> Table:
    """What the model does with the dictionary in place of its activations, beside controls and ablations."""
    return _by_condition(
        "spliced", "The model with the dictionary spliced in", inputs.spliced, inputs.commands.get("evaluate-sae", ""),
        "Reconstructions replace the records of the layer, the error is dropped. Recovered: 1 as the clean run, 0 as "
        "the ablation. Untrained: the same dictionary before its first step.")


def pairs(inputs: ReportInputs) -> Table:
    """What the codes of an image and its text share, beside floors and controls."""
    return _by_condition(
        "pairs", "Image and text in the dictionary's codes", inputs.pairs, inputs.commands.get("evaluate-sae", ""),
        "Held-out samples; codes are the largest activation over the tokens of a modality. Two seeds: the same images, "
        "or texts, in another dictionary.")


def specialisation(inputs: ReportInputs) -> Table:
    """Table 1, ours first, then the paper's rows."""
    command = inputs.commands.get("interpret", "")
    heads = ("visual", "textual", "cross-modal", "mixed", "dead")
    rows = [
        Row(str(record.get("model", "this run")),
            tuple(_share(record, name, command) for name in (*references.CLASSES, "dead")))
        for record in _records(inputs.specialisation)
    ] or [Row("this run", (missing(command),) * len(heads))]
    rows += [Row(f"{model} (paper)", (*cells.values(), _NO_REFERENCE), "paper")
             for model, cells in references.TABLE_1.items()]
    return Table("specialisation", "Feature specialisation (paper, Table 1)", ("model", *heads), tuple(rows),
                 "Percent of live features; dead features are in no class and in percent of all.")


def _share(record: Mapping[str, Any], name: str, command: str) -> Cell:
    error = _float(record.get(f"{name}_error"))
    kind = str(record.get("kind") or "") if error is not None else "one SAE seed" if record.get("n") == 1 else ""
    return Cell(_float(record.get(name)), error=error, kind=kind, unit="%", digits=1,
                artifact=str(record.get("artifact") or ""), command=command)


def evaluation(inputs: ReportInputs) -> Table:
    """One row per metric, one column per condition."""
    command = inputs.commands.get("evaluate", "")
    return _by_condition("evaluation", "Evaluation", inputs.evaluation, command, absent=missing(command))


def causal_trace(inputs: ReportInputs) -> Table:
    """The strongest cell of every map."""
    command = inputs.commands.get("trace", "")
    rows = [_trace_row(shown.figure, shown.artifact) for shown in inputs.causal
            if isinstance(shown.figure, HeatMap)] or [Row("causal trace", (missing(command),) * 4)]
    return Table("trace", "Causal maps: the strongest cell",
                 ("map", "peak", "row", "column", "of what"), tuple(rows),
                 "The peak is chosen and read from the same samples; its interval is that of the single cell.")


def _trace_row(trace: HeatMap, artifact: str) -> Row:
    effect_RC = np.asarray(trace.value_RC, dtype=float)
    if not np.isfinite(effect_RC).any():
        return Row(trace.title, (missing(),) * 4)
    row, column = (int(index) for index in np.unravel_index(np.nanargmax(np.abs(effect_RC)), effect_RC.shape))
    low, high = (None if side is None else float(np.asarray(side)[row, column])
                 for side in (trace.low_RC, trace.high_RC))
    return Row(trace.title, (
        Cell(float(effect_RC[row, column]), low, high, kind=trace.kind, n=trace.n, artifact=artifact),
        text_cell(trace.rows[row]), text_cell(trace.columns[column]), text_cell(trace.about or "–"),
    ))


def interventions(inputs: ReportInputs) -> Table:
    """Effects beside their random controls."""
    command = inputs.commands.get("intervene", "")
    rows = [
        Row(f"{record['intervention']} · {record['condition']}", (
            text_cell(record.get("readout", "")),
            Cell(_float(record["effect"]), _float(record.get("low")), _float(record.get("high")),
                 kind=str(record.get("kind") or ""), n=_int(record.get("n")), digits=3,
                 artifact=str(record.get("artifact") or "")),
            Cell(_float(record.get("d")), command=command), Cell(_float(record.get("p")), digits=3, command=command),
        ), "ours" if record["condition"] == "features" else "control")
        for record in _records(inputs.interventions)
    ] or [Row("ablate, amplify, substitute, combine, clamp", (missing(command),) * 4)]
    return Table("interventions", "Interventions beside random features and random directions",
                 ("intervention", "readout", "effect", "Cohen's d", "p"), tuple(rows))


def control(inputs: ReportInputs) -> Table:
    """Table 2: controllable generation."""
    command, rows = inputs.commands.get("control", ""), []
    for dimension, paper in references.CONTROL.items():
        ours = inputs.control.get(dimension, {})
        rows += [Row(dimension, tuple(ours.get(name, missing(command)) for name in references.CONTROL_COLUMNS)),
                 Row(f"{dimension} (paper)", tuple(paper.values()), "paper")]
    return Table("control", "Controllable generation (paper, Table 2)",
                 ("control dimension", *references.CONTROL_COLUMNS), tuple(rows))


def baselines(inputs: ReportInputs) -> Table:
    """M-SAE and every baseline in the three comparisons; who wins a column is said in its cell."""
    command = inputs.commands.get("baselines", "")
    columns = list(dict.fromkeys(metric for cells in inputs.baselines.values() for metric in cells)) or ["all"]
    rows = [
        Row(method, tuple(cells.get(metric, _NO_REFERENCE) for metric in columns), "control" if control else "ours")
        for method, cells in inputs.baselines.items() for control in [method in inputs.baseline_controls]
    ] or [Row("M-SAE and six baselines", (missing(command),))]
    return Table("baselines", "M-SAE beside six baselines on equal images, labels and records", ("method", *columns),
                 tuple(rows), "Wins: its interval lies apart from those of all other methods. Beats, below: by the "
                 "interval of the paired difference. Winners are named for detection, overlap, hallucination and "
                 "success; the rest says what these cost. n/a: not applicable.")


# Our methods → the names under which experts judged them.
_JUDGED = {
    "M-SAE": "function identified by experts", "standard SAE": "standard SAE",
    "attention heads": "attention visualisation", "Integrated Gradients": "gradient attribution",
    "Grad-CAM": "gradient attribution",
}
_AUTOMATED = ("detection AUROC", "mask IoU")


def interpretability(inputs: ReportInputs) -> Table:
    """Section 5.6: what experts said of each method in the paper, beside what is measured without people."""
    missing_here, people = missing(inputs.commands.get("baselines", "")), Cell(kind="needs people")
    measured = {
        method: cells for method, cells in inputs.baselines.items() if any(name in cells for name in _AUTOMATED)
    } or {method: dict.fromkeys(_AUTOMATED, missing_here) for method in _JUDGED}
    rows = [
        Row(method, (
            references.INTERPRETABILITY.get(_JUDGED.get(method, ""), _NO_REFERENCE), people,
            *(cells.get(name, _NO_REFERENCE) for name in _AUTOMATED),
        ), "control" if method in inputs.baseline_controls else "ours")
        for method, cells in measured.items()
    ]
    rows += [Row(f"{name} of the experts", (paper, people, _NO_REFERENCE, _NO_REFERENCE))
             for name, paper in references.INTERPRETABILITY.items() if name not in _JUDGED.values()]
    return Table("interpretability", "Interpretability: people and without people (paper, 5.6)",
                 ("method", "identified by experts (paper)", "identified by people", *_AUTOMATED), tuple(rows),
                 "Identified: share of features whose function people name right; docs/baselines.md says what a study "
                 "takes. Detection and overlap: best unit for each concept, chosen on other images.")


def _by_condition(
    name: str, title: str, found: Mapping[str, Mapping[str, Cell]], command: str, note: str = "",
    absent: Cell = _NO_REFERENCE,
) -> Table:
    """One row per metric, one column per condition; `absent` stands where a condition lacks a metric."""
    metrics = dict.fromkeys(metric for cells in found.values() for metric in cells)
    if not metrics:
        return Table(name, title, ("metric", "this run"), (Row("all", (missing(command),)),))
    rows = [Row(metric, tuple(cells.get(metric, absent) for cells in found.values())) for metric in metrics]
    return Table(name, title, ("metric", *found), tuple(rows), note)


def _beside(name: str, title: str, paper: Mapping[str, Cell], ours: Mapping[str, Cell], command: str) -> Table:
    """A two-column comparison; what only this run measured comes last."""
    names = [*paper, *(key for key in ours if key not in paper)]
    rows = tuple(Row(key, (ours.get(key, missing(command)), paper.get(key, _NO_REFERENCE))) for key in names)
    return Table(name, title, ("", "this run", "paper"), rows)


def _records(frame: pd.DataFrame | None) -> Iterable[dict[str, Any]]:
    return [] if frame is None else frame.to_dict("records")


def _label(record: Mapping[str, Any]) -> str:
    parts = [str(record.get("model") or ""), f"layer {record['layer']}" if "layer" in record else "",
             str(record.get("arch") or "")]
    return " · ".join(part for part in parts if part)


def _cell(record: Mapping[str, Any], key: str, digits: int, unit: str, command: str) -> Cell:
    return Cell(_float(record.get(key)), digits=digits, unit=unit, artifact=str(record.get("artifact") or ""),
                command=command)


def _float(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _int(value: Any) -> int | None:
    return None if value is None or pd.isna(value) else int(value)
