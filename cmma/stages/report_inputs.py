"""What the report shows, gathered from the artifacts that exist."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from PIL import Image

from cmma.artifacts.store import Artifact
from cmma.config import Config
from cmma.data.tars import load_samples
from cmma.figures import Gallery, from_json
from cmma.report.inputs import ArtifactRef, ReportInputs, Shown
from cmma.stages.cells import (
    baseline_cells,
    by_condition,
    consistency_cells,
    control_cells,
    evaluation_cells,
    hallucination_cells,
    network_cells,
    phases_cells,
)
from cmma.stages.intervene import report_rows
from cmma.stages.prepare_data import tars_of
from cmma.stages.splits import resolve_split
from cmma.stages.table import STAGES
from cmma.statistics.correction import holm


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
        "artifacts": [reference(name, artifact, _command(name, words)) for name, artifact in parents.items()],
        "commands": {stage: f"cmma {stage} {words}".strip() for stage in STAGES},
        "environment": {
            name: number for artifact in parents.values() for name, number in artifact.manifest["software"].items()
        },
        "causal": [
            shown for name, artifact in parents.items()
            if name.startswith(("trace:", "intervene:", "mitigate", "control", "baselines"))
            for shown in figures_of(artifact)
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
        parts["network"] = network_cells(graph)
    interventions = [artifact for name, artifact in parents.items() if name.startswith("intervene:")]
    if interventions:
        parts["interventions"] = _interventions(interventions)
    if "phases" in parents:
        parts["phases"] = phases_cells(parents["phases"], graph)
        parts["depth"] = figures_of(parents["phases"])
    if "mitigate" in parents and parents["mitigate"].path("test.parquet").is_file():
        parts["hallucination"] = hallucination_cells(parents["mitigate"], config.mitigation.split)
    amplified = parents.get("intervene:amplify")  # the paper's 5.5.2 amplifies
    if amplified is not None and amplified.path("consistency.parquet").is_file():
        parts["consistency"] = consistency_cells(amplified)
    if "control" in parents and parents["control"].path("control.parquet").is_file():
        parts["control"] = control_cells(parents["control"])
    if "baselines" in parents:
        parts["baselines"], parts["baseline_controls"] = baseline_cells(parents["baselines"])
    if "evaluate" in parents:
        parts["evaluation"] = evaluation_cells(parents["evaluate"])
    return ReportInputs(title=f"{config.model.name}: cross-modal mechanistic analysis", **parts)


def _command(name: str, words: str) -> str:
    stage, _, variant = name.partition(":")
    group = {"trace": "trace", "intervene": "intervention"}.get(stage, "")
    chosen = f" {group}={variant}" if variant else ""
    return f"cmma {stage}{chosen} {words}".strip()


def reference(name: str, artifact: Artifact, command: str) -> ArtifactRef:
    """A finished artifact as the page of provenance shows it, under the name `stage` or `stage:variant`."""
    manifest = artifact.manifest
    return ArtifactRef(
        stage=name, key=artifact.key, command=command, folder=f"artifacts/{artifact.stage}/{artifact.key}",
        parents=tuple(manifest["parents"].values()),
        resolved=artifact.path("resolved.yaml").read_text(encoding="utf-8"), summary=manifest["summary"],
        device=manifest["device"],
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


def figures_of(artifact: Artifact) -> list[Shown]:
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


def _dictionary(artifact: Artifact) -> dict[str, Any]:
    pairs, spliced = (artifact.read_table(f"{name}.parquet").to_dict("records") for name in ("pairs", "spliced"))
    for row in spliced:
        row["metric"] += f", {row['tokens']}"
    return {
        "pairs": by_condition(pairs, "condition", artifact), "spliced": by_condition(spliced, "condition", artifact),
        "modality_histogram": artifact.summary["modality_histogram"],
    }
