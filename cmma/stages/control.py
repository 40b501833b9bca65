"""control: change one factor of what a model makes by dictionary features (paper, Table 2), beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from cmma import figures
from cmma.artifacts.store import Artifact
from cmma.config import load_group
from cmma.control.rates import METRICS
from cmma.control.run import CHANGED_INPUT, FEATURES, RANDOM_DIRECTION, RANDOM_FEATURES, Measured, Outcome, control
from cmma.control.table import against_controls, table_two, trial_frame
from cmma.evaluation.clip_score import cosines
from cmma.evaluation.embeddings import embed
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.models.spec import ModelSpec
from cmma.sae.interchange.load import load_sae
from cmma.stages.runner import Stage
from cmma.stages.splits import load_split

_SHOWN = (FEATURES, RANDOM_FEATURES, RANDOM_DIRECTION, CHANGED_INPUT)


def run(stage: Stage) -> dict[str, Any]:
    """Table 2 with intervals, every trial, and some of the images or texts; summary: success and precision."""
    config, artifact = stage.config.control, stage.artifact
    samples = load_split(stage.parents["prepare-data"], config.split, 0, config.n_selection + config.max_samples)
    model = load_model(stage.config.model, stage.device)
    sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)
    outcome = control(model, sae, stage.config.sae_layer(), samples, config)
    summary: dict[str, Any] = {
        "n_samples": outcome.n_samples, "n_right": outcome.n_right,
        "settings": {factor: asdict(setting) for factor, setting in outcome.settings.items()},
    }
    artifact.write_table("tuning.parquet", outcome.tuning)
    if not outcome.measured:
        artifact.write_json("figures.json", [])
        return summary | {"not_measured": "the model makes too few of the scenes as they are described"}
    encoder = load_model(ModelSpec(**load_group("model", config.encoder)), stage.device)
    trials = trial_frame(outcome.measured, _target_preferred(encoder, outcome.measured, config.batch_size))
    table = table_two(trials, seed=config.seed)
    tests = against_controls(trials, seed=config.seed)
    artifact.write_table("trials.parquet", trials)
    artifact.write_table("control.parquet", table)
    artifact.write_table("tests.parquet", tests)
    artifact.write_json("figures.json", figures.to_json(_figures(artifact, outcome, table, config.n_shown)))
    ours = table[table["condition"] == FEATURES]
    return summary | {
        metric: {group: None if pd.isna(value) else value for group, value in _of(ours, metric)}
        for metric in METRICS
    }


def _of(table: pd.DataFrame, metric: str) -> list[tuple[str, float]]:
    some = table[table["metric"] == metric]
    return list(zip(some["group"], some["value"], strict=True))


def _target_preferred(encoder: MultimodalModel, measured: Sequence[Measured], batch_size: int) -> list[bool]:
    """Whether each result lies closer to the caption of the scene as it should become than to that of the scene as it
    was, by the encoder's cosine: of the image, or of the text, that was made."""
    samples = [replace(each.trial.sample, image=each.after.image or each.trial.sample.image) for each in measured]
    wanted = embed(encoder, samples, [each.trial.changed_prompt() for each in measured], batch_size)
    was_ND = embed(encoder, samples, batch_size=batch_size).text_ND
    made_ND = wanted.image_ND
    if measured[0].after.image is None:
        made_ND = embed(encoder, samples, [each.after.text for each in measured], batch_size).text_ND
    return (cosines(made_ND, wanted.text_ND) > cosines(made_ND, was_ND)).tolist()


def _figures(artifact: Artifact, outcome: Outcome, table: pd.DataFrame, n_shown: int) -> list[figures.Figure]:
    """Chosen settings, all conditions side by side, and some trials."""
    settings = figures.Listing(
        "controllable generation: settings", "chosen on the selection samples, factor by factor",
        ("factor", "tokens", "features", "strength", "start"),
        [(factor, *asdict(setting).values()) for factor, setting in outcome.settings.items()],
    )  # fmt: skip
    wide = table.pivot_table(index=["group", "condition"], columns="metric", values="value", sort=False)
    shown = [name for name in METRICS if name in wide]
    conditions = figures.Listing(
        "controllable generation: conditions", "shares; the changed input is what features are to replace",
        ("group", "condition", *shown),
        [(*index, *values) for index, values in zip(wide.index, wide[shown].to_numpy().tolist(), strict=True)],
    )  # fmt: skip
    return [settings, conditions, _shown_trials(artifact, outcome.measured, n_shown)]


def _shown_trials(artifact: Artifact, measured: Sequence[Measured], n_shown: int) -> figures.Figure:
    """The first trials of each factor: as images in a gallery, or as texts."""
    chosen: dict[tuple[str, str], dict[str, Measured]] = {}
    for each in measured:
        key = (each.trial.factor, each.trial.sample.key)
        if each.draw == 0 and (key in chosen or sum(factor == key[0] for factor, _ in chosen) < n_shown):
            chosen.setdefault(key, {})[each.condition] = each
    title = "controllable generation: trials"
    if measured[0].after.image is None:
        return figures.Listing(
            title, "captions", ("change", "before", *_SHOWN),
            [
                (_label(row[FEATURES]), row[FEATURES].before.text, *(row[name].after.text for name in _SHOWN))
                for row in chosen.values()
            ],
        )  # fmt: skip
    gallery: list[list[tuple[str, str]]] = []
    for (factor, sample), row in chosen.items():
        made = {_label(row[FEATURES]): row[FEATURES].before, **{name: row[name].after for name in _SHOWN}}
        gallery.append([])
        for column, (caption, result) in enumerate(made.items()):
            assert result.image is not None
            file = f"images/{factor}-{sample}-{column}.png"
            artifact.write_image(file, result.image)
            gallery[-1].append((file, caption))
    return figures.Gallery(title, "one noise in each row", gallery)


def _label(each: Measured) -> str:
    trial = each.trial
    if trial.factor == "places":
        return f"before; {trial.target} is to be turned round"
    thing = trial.sample.objects[trial.objects[0]]
    return f"before; the {thing['color']} {thing['shape']} is to be {trial.target}"
