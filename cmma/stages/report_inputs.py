"""What the report shows, gathered from the artifacts that exist."""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from PIL import Image

from cmma.artifacts.store import Artifact
from cmma.baselines.config import RANDOM
from cmma.config import Config
from cmma.data.tars import load_samples
from cmma.figures import Gallery, from_json
from cmma.report.inputs import ArtifactRef, ReportInputs, Shown
from cmma.report.tables import Cell
from cmma.stages.intervene import report_rows
from cmma.stages.mitigate import hallucination_changes
from cmma.stages.prepare_data import tars_of
from cmma.stages.splits import resolve_split
from cmma.stages.table import STAGES
from cmma.statistics.correction import holm

# Metrics that are shares and print in percent.
_SHARES = (
    "chair_", "recall", "hallucination_", "objects_described", "question_accuracy", "image_to_text", "text_to_image",
    "prompt_", "answer_accuracy", "modality_share", "dead_fraction", "support_jaccard",
)


def gather(config: Config, parents: Mapping[str, Artifact], overrides: Sequence[str]) -> ReportInputs:
    """Turn artifacts into the report's input. Parts whose artifact is missing stay empty: *not measured*."""
    data = parents["prepare-data"]
    dictionary, interpret, graph = (parents.get(name) for name in ("train-sae", "interpret", "build-cmig"))
    words = " ".join(shlex.quote(word) for word in overrides)
    parts: dict[str, Any] = {
        "model": {
            "name": config.model.name, "family": config.model.family, "weights": config.model.weights,
            "layers": config.model.n_layers, "cached layers": config.layers(), "dictionary layer": config.sae_layer(),
        },
        "dataset": {"kind": config.dataset.kind, **data.summary["samples"], "skipped": data.summary["skipped"]},
        "artifacts": [_reference(name, artifact, words) for name, artifact in parents.items()],
        "commands": {stage: f"cmma {stage} {words}".strip() for stage in STAGES},
        "environment": {
            name: number for artifact in parents.values() for name, number in artifact.manifest["software"].items()
        },
        "causal": [
            shown for name, artifact in parents.items()
            if name.startswith(("trace:", "intervene:", "mitigate", "control", "baselines"))
            for shown in _figures(artifact)
        ],
    }
    if dictionary is not None:
        summary = dictionary.summary
        parts["sae"] = pd.DataFrame([{**summary, "artifact": dictionary.key, "model": config.model.name}])
    if "evaluate-sae" in parents:
        parts |= _dictionary(parents["evaluate-sae"])
    if interpret is not None:
        parts |= _interpretation(config, data, interpret)
    if graph is not None:
        edges = graph.read_table("edges.parquet")
        once = edges[edges["source"] < edges["target"]].rename(columns={"p_excess": "p", "q_excess": "q"})
        parts["edges"] = once.assign(layer=graph.summary["layer"], artifact=graph.key)
        parts["network"] = _network(graph)
    interventions = [artifact for name, artifact in parents.items() if name.startswith("intervene:")]
    if interventions:
        parts["interventions"] = _interventions(interventions)
    if "phases" in parents:
        parts["phases"] = _phases(parents["phases"], graph)
        parts["depth"] = _figures(parents["phases"])
    if "mitigate" in parents and parents["mitigate"].path("test.parquet").is_file():
        parts["hallucination"] = _hallucination(parents["mitigate"], config.mitigation.split)
    amplified = parents.get("intervene:amplify")  # the paper's 5.5.2 amplifies
    if amplified is not None and amplified.path("consistency.parquet").is_file():
        parts["consistency"] = _consistency(amplified)
    if "control" in parents and parents["control"].path("control.parquet").is_file():
        parts["control"] = _control(parents["control"])
    if "baselines" in parents:
        parts |= _baselines(parents["baselines"])
    if "evaluate" in parents:
        parts["evaluation"] = _evaluation(parents["evaluate"])
    return ReportInputs(title=f"{config.model.name}: cross-modal mechanistic analysis", **parts)


def _reference(name: str, artifact: Artifact, words: str) -> ArtifactRef:
    manifest = artifact.manifest
    stage, _, variant = name.partition(":")
    group = {"trace": "trace", "intervene": "intervention"}.get(stage, "")
    chosen = f" {group}={variant}" if variant else ""
    return ArtifactRef(
        stage=name, key=artifact.key, command=f"cmma {stage}{chosen} {words}".strip(),
        folder=f"artifacts/{artifact.stage}/{artifact.key}", parents=tuple(manifest["parents"].values()),
        resolved=artifact.path("resolved.yaml").read_text(encoding="utf-8"), summary=manifest["summary"],
    )


def _interpretation(config: Config, data: Artifact, interpret: Artifact) -> dict[str, Any]:
    layer = config.sae_layer()
    examples = interpret.read_table("examples.parquet")
    keys = examples["sample"].unique().tolist()
    samples = load_samples(tars_of(data, resolve_split(data, config.interpret.split)), keys)
    shares = interpret.summary["shares"]
    features = interpret.read_table("features.parquet").assign(layer=layer)
    features["concept"] = features["concept"].fillna("")  # Parquet has no None among strings
    parts: dict[str, Any] = {
        "features": features, "examples": examples,
        "images": {sample.key: _thumbnail(sample.image) for sample in samples},
        "captions": {sample.key: sample.caption for sample in samples},
        "specialisation": pd.DataFrame([{
            "model": config.model.name, "layer": layer, "n": 1, "artifact": interpret.key, **shares,
        }]),
    }
    if interpret.path("logits.parquet").is_file():
        parts["logits"] = interpret.read_table("logits.parquet")
    return parts


def _thumbnail(image: Image.Image) -> Image.Image:
    image.thumbnail((160, 160))
    return image


def _figures(artifact: Artifact) -> list[Shown]:
    """What a stage left to be drawn, with the pictures that its galleries name."""
    shown: list[Shown] = []
    for figure in from_json(artifact.read_json("figures.json")):
        names = [name for row in figure.images for name, _ in row] if isinstance(figure, Gallery) else []
        shown.append(Shown(figure, artifact.key, {name: Image.open(artifact.path(name)) for name in names}))
    return shown


def _interventions(artifacts: Sequence[Artifact]) -> pd.DataFrame:
    """All variants in one table; p is Holm-corrected over the variants, condition by condition."""
    rows = [
        row | {"artifact": artifact.key}
        for artifact in artifacts for row in report_rows(artifact.read_table("effects.parquet"))
    ]
    table = pd.DataFrame(rows)
    table["p"] = table.groupby("condition", sort=False)["p"].transform(holm)
    return table


def _hallucination(artifact: Artifact, split: str) -> dict[str, Cell]:
    """Changes under the names of `cmma.report.references.HALLUCINATION`, and what this run measured beside."""
    cells = hallucination_changes(artifact.read_table("test.parquet"), split)
    return {
        name: Cell(**cell, kind="95% CI", unit="%", digits=1, artifact=artifact.key) if cell["value"] is not None
        else Cell("undefined: none before", artifact=artifact.key)
        for name, cell in cells.items()
    }


def _consistency(artifact: Artifact) -> dict[str, Cell]:
    """Section 5.5.2: change of each component under the intervention, in percent."""
    table = artifact.read_table("consistency.parquet")
    found = {}
    for row in table[table["condition"] == "after"].to_dict("records"):
        value, low, high = (None if pd.isna(row[k]) else row[k] for k in ("value", "low", "high"))
        found[row["component"]] = Cell(
            value, low, high, kind=row["kind"], n=int(row["n"]), unit="%", digits=1, artifact=artifact.key
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


def _control(artifact: Artifact) -> dict[str, dict[str, Cell]]:
    """Table 2: what the features do; precision as a share, the others in percent."""
    found: dict[str, dict[str, Cell]] = {name: {} for name in _DIMENSIONS.values()}
    table = artifact.read_table("control.parquet")
    for row in table[table["condition"] == "features"].to_dict("records"):
        if row["group"] in _DIMENSIONS and row["metric"] in _CONTROL_METRICS:
            percent = row["metric"] != "precision"
            value, low, high = (
                None if pd.isna(row[k]) else (100 if percent else 1) * row[k] for k in ("value", "low", "high")
            )
            found[_DIMENSIONS[row["group"]]][_CONTROL_METRICS[row["metric"]]] = Cell(
                value, low, high, kind=row["kind"], n=int(row["n"]), unit="%" if percent else "",
                digits=1 if percent else 2, artifact=artifact.key,
            )
    return found


# Metrics of the comparison with baselines that have a column: unit and decimals.
_BASELINE_METRICS = {
    "detection AUROC": ("", 3), "mask IoU": ("", 3), "object hallucination, change in %": ("%", 1),
    "recall, change in points": ("", 1), "success": ("", 2), "precision": ("", 2),
}


def _baselines(artifact: Artifact) -> dict[str, Any]:
    """Every method's headline numbers, with the verdict against M-SAE and the winner of each column."""
    found: dict[str, dict[str, Cell]] = {}
    table = artifact.read_table("baselines.parquet")
    ceiling = table["metric"].str.endswith(", changed input")
    for row in table.assign(metric=table["metric"].str.removesuffix(", changed input")).to_dict("records"):
        if row["metric"] not in _BASELINE_METRICS:
            continue
        unit, digits = _BASELINE_METRICS[row["metric"]]
        value, low, high = (None if pd.isna(row[k]) else row[k] for k in ("value", "low", "high"))
        remark = "; ".join(part for part in ("wins" if row["winner"] else "", row["verdict"], row["kind"]) if part)
        found.setdefault(row["method"], {})[row["metric"]] = (
            Cell("n/a", kind=row["reason"], artifact=artifact.key) if row["reason"]
            else Cell("undefined" if value is None else value, low, high, kind=remark, n=int(row["n"]), unit=unit,
                      digits=digits, artifact=artifact.key)
        )
    return {"baselines": found, "baseline_controls": [RANDOM, *table.loc[ceiling, "method"].unique()]}


def _network(graph: Artifact) -> dict[str, Cell]:
    """Section 5.2's numbers under the names of `cmma.report.references.NETWORK`."""
    numbers = graph.summary
    shares, network = numbers["strength"]["shares"], numbers["network"]

    def cell(value: dict[str, Any], scale: float = 1.0, unit: str = "", digits: int = 2) -> Cell:
        centre, low, high = (None if value[k] is None else scale * value[k] for k in ("value", "low", "high"))
        return Cell(
            centre, low, high, kind=value["kind"], n=value["n"], unit=unit, digits=digits, artifact=graph.key
        )

    significant = numbers["strength"]["significant"]["strong"]
    named = {
        f"{name} pairs ({cut})": cell(shares[name], 100, unit="%", digits=1)
        for name, cut in (("strong", "I > 0.5"), ("moderate", "0.2 < I ≤ 0.5"), ("weak", "I ≤ 0.2"))
    }
    named["significant among strong"] = Cell(
        None if significant is None else 100 * significant, unit="%", digits=1, artifact=graph.key)
    named["average clustering"] = Cell(network["clustering"]["value"], n=network["nodes"], artifact=graph.key)
    named["small-world σ"] = cell(network["small_world"])
    for name, label in (("modularity", "modularity"), ("assortativity", "assortativity of classes"),
                        ("crossing", "visual–textual share of edges")):
        against = network[name]
        chance = "" if against["p"] is None else f"degree-matched {against['random_mean']:.2f}, p = {against['p']:.2g}"
        named[label] = Cell(against["value"], n=network["edges"], kind=chance, artifact=graph.key)
    law = network["power_law"]
    named["scale-free exponent γ"] = Cell(law["exponent"], n=law["n"], artifact=graph.key)
    named["power law of the degrees"] = Cell(law["verdict"].split(":")[0], artifact=graph.key)
    return named


def _phases(artifact: Artifact, graph: Artifact | None) -> dict[str, Cell]:
    """Section 5.4's numbers under the names of `cmma.report.references.PHASES`."""
    found, shares = artifact.summary, artifact.summary["shares_by_phase"]
    key, n = artifact.key, artifact.summary["n_units"]

    def over_units(value: float | None, sd: float | None = None, unit: str = "", digits: int = 2) -> Cell:
        return Cell(value, error=sd, kind="" if sd is None else f"SD over {n} units", n=n, unit=unit, digits=digits,
                    artifact=key)

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


def _dictionary(artifact: Artifact) -> dict[str, Any]:
    pairs, spliced = (artifact.read_table(f"{name}.parquet").to_dict("records") for name in ("pairs", "spliced"))
    for row in spliced:
        row["metric"] += f", {row['tokens']}"
    return {
        "pairs": _by_condition(pairs, "condition", artifact), "spliced": _by_condition(spliced, "condition", artifact),
        "modality_histogram": artifact.summary["modality_histogram"],
    }


def _evaluation(artifact: Artifact) -> dict[str, dict[str, Cell]]:
    return _by_condition(artifact.read_table("metrics.parquet").to_dict("records"), "split", artifact)


def _by_condition(
    rows: Sequence[dict[Hashable, Any]], condition: str, artifact: Artifact
) -> dict[str, dict[str, Cell]]:
    found: dict[str, dict[str, Cell]] = {}
    for row in rows:
        share = row["metric"].startswith(_SHARES)
        scale = 100.0 if share else 1.0
        value, low, high = (None if pd.isna(row[k]) else scale * row[k] for k in ("value", "low", "high"))
        found.setdefault(row[condition], {})[row["metric"]] = Cell(
            "undefined" if value is None else value, low, high, kind=row["kind"], n=int(row["n"]),
            unit="%" if share else "", digits=1 if share else 3, artifact=artifact.key,
        )
    return found
