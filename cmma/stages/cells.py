"""Numbers of artifacts as cells of tables, under the paper's names (`cmma.report.references`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from cmma.artifacts.store import Artifact
from cmma.baselines.config import RANDOM
from cmma.report.tables import Cell
from cmma.stages.mitigate import hallucination_changes

# Metrics that are shares and print in percent.
_SHARES = (
    "chair_", "recall", "hallucination_", "objects_described", "question_accuracy", "image_to_text", "text_to_image",
    "prompt_", "answer_accuracy", "modality_share", "dead_fraction", "support_jaccard",
)


def measured(
    value: float | None, low: float | None = None, high: float | None = None, *, artifact: str, kind: str = "",
    n: int | None = None, unit: str = "", digits: int = 2, scale: float = 1.0,
) -> Cell:
    """A number of an artifact; where it is not defined (None or NaN), the word, for it was not left unmeasured."""
    if value is None or pd.isna(value):
        return Cell("undefined", kind=kind.removeprefix("undefined: "), artifact=artifact)
    centre, below, above = (None if number is None or pd.isna(number) else scale * number
                            for number in (value, low, high))
    return Cell(centre, below, above, kind=kind, n=n, unit=unit, digits=digits, artifact=artifact)


def hallucination_cells(artifact: Artifact, split: str) -> dict[str, Cell]:
    """Changes under the names of `cmma.report.references.HALLUCINATION`, and what this run measured beside."""
    cells = hallucination_changes(artifact.read_table("test.parquet"), split)
    return {
        name: Cell(**cell, kind="95% CI", unit="%", digits=1, artifact=artifact.key) if cell["value"] is not None
        else Cell("undefined: none before", artifact=artifact.key)
        for name, cell in cells.items()
    }


def consistency_cells(artifact: Artifact) -> dict[str, Cell]:
    """Section 5.5.2: change of each component under the intervention, in percent; of all of them, the controls too."""
    unchanged = artifact.summary.get("texts_changed") == 0
    found = {}
    for row in artifact.read_table("consistency.parquet").to_dict("records"):
        value, low, high = (None if pd.isna(row[k]) else row[k] for k in ("value", "low", "high"))
        after, name = row["condition"] == "after", row["component"]
        if after or name == "all":
            found[name if after else f"{name}, {row['condition'].replace('_', ' ')}"] = Cell(
                value, low, high, kind="no caption changed" if after and unchanged else row["kind"], n=int(row["n"]),
                unit="%", digits=1, artifact=artifact.key,
            )
    return found


# Rows and columns of Table 2 (`cmma.report.references.CONTROL`): ours → the paper's.
_DIMENSIONS = {
    "object": "object manipulation", "style": "style transfer", "attribute": "attribute modification",
    "composition": "compositional changes", "overall": "overall",
}
_CONTROL_METRICS = {
    "success": "success rate", "precision": "precision", "preservation": "semantic preservation"
}


def control_cells(artifact: Artifact) -> dict[str, dict[str, Cell]]:
    """Table 2: what the features do; precision as a share, the others in percent."""
    found: dict[str, dict[str, Cell]] = {name: {} for name in _DIMENSIONS.values()}
    table = artifact.read_table("control.parquet")
    for row in table[table["condition"] == "features"].to_dict("records"):
        if row["group"] in _DIMENSIONS and row["metric"] in _CONTROL_METRICS:
            percent = row["metric"] != "precision"
            found[_DIMENSIONS[row["group"]]][_CONTROL_METRICS[row["metric"]]] = measured(
                row["value"], row["low"], row["high"], kind=row["kind"], n=int(row["n"]), unit="%" if percent else "",
                digits=1 if percent else 2, artifact=artifact.key, scale=100 if percent else 1,
            )
    return found


# Metrics of the comparison with baselines that have a column: unit and decimals.
_BASELINE_METRICS = {
    "detection AUROC": ("", 3), "mask IoU": ("", 3), "object hallucination, change in %": ("%", 1),
    "recall, change in points": ("", 1), "success": ("", 2), "precision": ("", 2),
}
_CEILING = ", changed input"


def baseline_cells(artifact: Artifact) -> tuple[dict[str, dict[str, Cell]], list[str]]:
    """Every method's headline numbers, with the verdict against M-SAE and the winner of each column.

    Also which of the rows are a control or a ceiling.
    """
    found: dict[str, dict[str, Cell]] = {}
    controls = {RANDOM: True}
    for row in artifact.read_table("baselines.parquet").to_dict("records"):
        metric = row["metric"].removesuffix(_CEILING)
        if metric not in _BASELINE_METRICS:
            continue
        if metric != row["metric"]:
            controls[row["method"]] = True
        unit, digits = _BASELINE_METRICS[metric]
        value, low, high = (None if pd.isna(row[k]) else row[k] for k in ("value", "low", "high"))
        remark = "; ".join(part for part in ("wins" if row["winner"] else "", row["verdict"], row["kind"]) if part)
        found.setdefault(row["method"], {})[metric] = (
            Cell("n/a", kind=row["reason"], artifact=artifact.key) if row["reason"]
            else Cell("undefined" if value is None else value, low, high, kind=remark, n=int(row["n"]), unit=unit,
                      digits=digits, artifact=artifact.key)
        )
    return found, list(controls)


def network_cells(graph: Artifact) -> dict[str, Cell]:
    """Section 5.2's numbers under the names of `cmma.report.references.NETWORK`."""
    numbers = graph.summary
    shares, network = numbers["strength"]["shares"], numbers["network"]

    def cell(value: dict[str, Any], scale: float = 1.0, unit: str = "", digits: int = 2) -> Cell:
        return measured(value["value"], value["low"], value["high"], kind=value["kind"], n=value["n"], unit=unit,
                        digits=digits, artifact=graph.key, scale=scale)

    significant = numbers["strength"]["significant"]["strong"]
    named = {
        f"{name} pairs ({cut})": cell(shares[name], 100, unit="%", digits=1)
        for name, cut in (("strong", "I > 0.5"), ("moderate", "0.2 < I ≤ 0.5"), ("weak", "I ≤ 0.2"))
    }
    named["significant among strong"] = measured(
        significant, unit="%", digits=1, artifact=graph.key, scale=100,
        kind="undefined: no pair is strong" if significant is None else "")
    named["small-world σ"] = cell(network["small_world"])
    for name, label, units in (
        ("clustering", "average clustering", "nodes"), ("modularity", "modularity", "edges"),
        ("assortativity", "assortativity of classes", "edges"), ("crossing", "visual–textual share of edges", "edges"),
    ):
        against = network[name]
        chance = "" if against["p"] is None else f"degree-matched {against['random_mean']:.2f}, p = {against['p']:.2g}"
        named[label] = measured(against["value"], n=network[units], kind=chance, artifact=graph.key)
    law = network["power_law"]
    exponent = measured(law["exponent"], n=law["n"], artifact=graph.key, kind="" if law["exponent"] is None else "SE")
    named["scale-free exponent γ"] = replace(exponent, error=law["standard_error"])
    named["power law of the degrees"] = Cell(law["verdict"].split(":")[0], artifact=graph.key)
    return named


def phases_cells(artifact: Artifact, graph: Artifact | None) -> dict[str, Cell]:
    """Section 5.4's numbers under the names of `cmma.report.references.PHASES`."""
    found, shares = artifact.summary, artifact.summary["shares_by_phase"]
    key, n = artifact.key, artifact.summary["n_units"]

    def over_units(value: float | None, sd: float | None = None, unit: str = "", digits: int = 2) -> Cell:
        cell = measured(value, kind="" if sd is None else f"SD over {n} units", n=n, unit=unit, digits=digits,
                        artifact=key)
        return replace(cell, error=sd)

    sd = found["phase_sd"]
    cells = {
        "phase 1: unimodal features": over_units(
            shares["1"]["unimodal"]["mean"], shares["1"]["unimodal"]["sd"], "%", 1),
        "phase 1: cross-modal activity": over_units(found["phase_means"][0], None if sd is None else sd[0]),
        "phase 2: exponential fit R²": over_units(found["rise"]["r2_exponential"]),
        "phase 2: R² of a straight line": over_units(found["rise"]["r2_line"]),
        "phase 2: peak cross-modal features": over_units(shares["2"]["cross_modal"]["peak"], unit="%", digits=1),
        "phase 3: cross-modal features": over_units(
            shares["3"]["cross_modal"]["mean"], shares["3"]["cross_modal"]["sd"], "%", 1),
    }
    if graph is not None and (flow := graph.summary["flow"]) and flow["textual_to_visual"]["value"]:
        ratio = flow["visual_to_textual"]["value"] / flow["textual_to_visual"]["value"]
        cells["phase 2: visual-to-text ratio"] = Cell(ratio, digits=2, n=flow["pairs"], artifact=graph.key)
    if found["anova"]:
        anova = found["anova"]
        kind = f"F({anova['df_effect']}, {anova['df_error']}), Greenhouse–Geisser p = {anova['p_corrected']:.2g}"
        cells["ANOVA F(2, 28)"] = Cell(anova["f"], kind=kind, n=n, digits=1, artifact=key)
        cells["ANOVA η²"] = over_units(anova["eta_squared"])
        cells["Kendall's W"] = over_units(found["concordance"]["w"])
    return cells


def evaluation_cells(artifact: Artifact) -> dict[str, dict[str, Cell]]:
    return by_condition(artifact.read_table("metrics.parquet").to_dict("records"), "split", artifact)


def by_condition(
    rows: Sequence[dict[Hashable, Any]], condition: str, artifact: Artifact
) -> dict[str, dict[str, Cell]]:
    found: dict[str, dict[str, Cell]] = {}
    for row in rows:
        share = row["metric"].startswith(_SHARES)
        found.setdefault(row[condition], {})[row["metric"]] = measured(
            row["value"], row["low"], row["high"], kind=row["kind"], n=int(row["n"]), unit="%" if share else "",
            digits=1 if share else 3, artifact=artifact.key, scale=100 if share else 1,
        )
    return found
