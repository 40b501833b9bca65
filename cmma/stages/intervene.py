"""intervene: the paper's four interventions (Eq. 8-11) and clamping, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from cmma import figures
from cmma.artifacts.store import Artifact
from cmma.causal.effects import dose_curves, summarise
from cmma.causal.intervening import Outcome, intervene
from cmma.config import load_group
from cmma.console import warn
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.evaluation.chair import chair
from cmma.evaluation.consistency import consistency_scores, relative_changes
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY, visible_shapes
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.models.spec import ModelSpec
from cmma.sae.interchange.load import load_sae
from cmma.stages.runner import Stage
from cmma.stages.splits import load_split, measured_samples, resolve_split

_CONDITIONS = ("before", "after", "random_features", "random_direction")
_SHOWN = 4


def run(stage: Stage) -> dict[str, Any]:
    """Select features, change them, measure readout and texts on other samples; summary: effect with its controls."""
    config, data = stage.config.intervention, stage.parents["prepare-data"]
    if resolve_split(data, config.split) == resolve_split(data, stage.config.interpret.split):
        samples = measured_samples(data, stage.config)
    else:
        samples = load_split(data, config.split)
    model = load_model(stage.config.model, stage.device)
    sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)
    outcome = intervene(model, sae, stage.config.sae_layer(), samples, config)

    stage.artifact.write_table("selection.parquet", outcome.selection.table)
    stage.artifact.write_table("readouts.parquet", outcome.result.to_frame())
    effects = summarise([outcome.result, *outcome.doses])
    stage.artifact.write_table("effects.parquet", effects)
    texts = _texts(outcome)
    stage.artifact.write_jsonl("generations.jsonl", texts)
    shown = [curves] if (curves := dose_curves(effects)) else []
    stage.artifact.write_json("figures.json", figures.to_json([*shown, *_gallery(stage.artifact, outcome)]))
    truth = {sample.key: visible_shapes(sample) for sample in samples if sample.objects}
    summary: dict[str, Any] = {
        "kind": config.kind, "features": list(outcome.result.features), "readout": outcome.result.readout,
        "rank_correlation": _number(outcome.selection.rank_correlation),
        **{name: _number(effects[name].iloc[0]) for name in ("n", "shift", "shift_low", "shift_high", "d")},
        "excess_over_random_features": _number(effects["excess_features"].iloc[0]),
        "excess_over_random_directions": _number(effects["excess_directions"].iloc[0]),
    }
    if texts:
        summary["texts_changed"] = sum(row["before"] != row["after"] for row in texts) / len(texts)
        if truth and stage.config.model.prompt:  # captions, not answers
            summary["chair_i"] = {
                name: _number(_chair_i(texts, name, truth)) for name in ("before", "after", "random_features")
            }
    consistency = _consistency(stage, model, outcome, samples)
    if consistency:
        stage.artifact.write_table("consistency.parquet", pd.DataFrame(consistency))
        summary["consistency"] = {
            row["component"]: row["value"] for row in consistency if row["condition"] == "after"
        }
    return summary


def report_rows(effects: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the report's table: the shift, and what of it is more than each control does."""
    first = effects.iloc[0]
    named = {"features": "shift", "beyond random features": "excess_features",
             "beyond random direction": "excess_directions"}
    d_of = {"shift": "d", "excess_features": "d_features", "excess_directions": "d_directions"}
    strength = f" ({first['strength']:g})" if first["kind"] in ("amplify", "combine", "clamp") else ""
    return [
        {"intervention": first["kind"] + strength, "condition": condition, "readout": first["readout"],
         "effect": first[name], "low": first[f"{name}_low"], "high": first[f"{name}_high"], "kind": "95% CI",
         "n": first["n"], "d": first[d_of[name]], "p": first[f"{name}_p"]}
        for condition, name in named.items()
    ]


def _texts(outcome: Outcome) -> list[dict[str, Any]]:
    if outcome.texts is None:
        return []
    columns = asdict(outcome.texts)
    return [dict(zip(("key", *list(columns)[1:]), row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _gallery(artifact: Artifact, outcome: Outcome) -> list[figures.Figure]:
    """The first images, a row for each caption."""
    if outcome.images is None:
        return []
    rows = []
    for index, key in enumerate(outcome.images.keys[:_SHOWN]):
        rows.append([(f"images/{key}-{name}.png", name.replace("_", " ")) for name in _CONDITIONS])
        for (file, _), name in zip(rows[-1], _CONDITIONS, strict=True):
            artifact.write_image(file, getattr(outcome.images, name)[index])
    return [figures.Gallery(f"{outcome.result.kind}: images", "one noise in each row", rows)]


def _consistency(
    stage: Stage, model: MultimodalModel, outcome: Outcome, samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """How CLIP-Scores of what was made change under the intervention and its controls; empty where nothing was."""
    made = outcome.images or (outcome.texts if model.captions else None)
    if made is None:
        return []
    try:
        encoder = load_model(ModelSpec(**load_group("model", stage.config.intervention.encoder)), stage.device)
    except DataError as error:
        warn(f"semantic consistency is not measured: {error}")
        return []
    by_key = {sample.key: sample for sample in samples}
    asked = [by_key[key] for key in made.keys]
    scores = {}
    for name in _CONDITIONS:
        results = getattr(made, name)
        pictured, texts = asked, results
        if outcome.images is not None:
            pictured = [replace(sample, image=image) for sample, image in zip(asked, results, strict=True)]
            texts = [sample.caption for sample in asked]
        scores[name] = consistency_scores(encoder, pictured, texts)
    return [
        {"condition": name, "component": component, "encoder": encoder.spec.name,
         "before": scores["before"][component].mean() if component in scores["before"] else None,
         **interval.as_dict()}
        for name in _CONDITIONS[1:]
        for component, interval in relative_changes(
            scores["before"], scores[name], seed=stage.config.intervention.seed).items()
    ]  # fmt: skip


def _chair_i(texts: list[dict[str, Any]], condition: str, truth: dict[str, list[str]]) -> float:
    scores = chair(
        [row[condition] for row in texts], [truth[row["key"]] for row in texts], SHAPES_VOCABULARY, n_resamples=100)
    return scores.chair_i.value


def _number(value: Any) -> float | int | None:
    plain = value.item() if hasattr(value, "item") else value
    return None if plain != plain else plain
