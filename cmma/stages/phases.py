"""phases: what dictionaries of every layer say about the depth of one or more models (paper, section 5.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cmma import figures
from cmma.activations.reader import ShardReader
from cmma.console import progress
from cmma.features.specialisation import CLASSES
from cmma.figures import Curves, Figure, Line, Listing
from cmma.phases.analysis import Unit, analyse, unit_table
from cmma.phases.layers import LayerReading, read_layer
from cmma.sae.interchange.load import load_sae
from cmma.stages.keys import phase_models
from cmma.stages.runner import Stage


def run(stage: Stage) -> dict[str, Any]:
    """Classes and activity of every layer, model and seed on held-out records; summary: the tests of section 5.3."""
    settings = stage.config.phases
    units, rows = [], []
    for spec in phase_models(stage.config):
        readings = _read_model(stage, spec.name, spec.n_layers)
        for seed, of_seed in zip(settings.seeds, readings, strict=True):
            activity_L = np.array([each.activity for each in of_seed])
            units.append(Unit(spec.name, seed, activity_L, np.stack([each.activity_R for each in of_seed], axis=1)))
            rows += [{"n": each.n_samples, **each.shares} for each in of_seed]
    table = pd.concat([unit_table(units), pd.DataFrame(rows)], axis=1)
    found = analyse(units, settings.most_changes, settings.n_resamples, stage.config.seed)
    stage.artifact.write_table("layers.parquet", table)
    stage.artifact.write_json("figures.json", figures.to_json(_figures(table, found)))
    return {**found, "shares_by_phase": _shares_by_phase(table)}


def _read_model(stage: Stage, model: str, n_layers: int) -> list[list[LayerReading]]:
    """[seeds][layers]; the records of a layer are read once for all seeds."""
    settings, config = stage.config.phases, stage.config
    cached = stage.parents[f"cache-activations:{model}"]
    readings: list[list[LayerReading]] = [[] for _ in settings.seeds]
    with progress(f"Reading the layers of {model}", total=n_layers * len(settings.seeds)) as bar:
        for layer in range(n_layers):
            batches = list(ShardReader(cached, layer).held_out(config.optim.batch))
            for index, seed in enumerate(settings.seeds):
                sae = load_sae(stage.parents[f"train-sae:{model}:{layer}:{seed}"].folder).to(stage.device)
                readings[index].append(read_layer(
                    sae, batches, config.sae.tau, config.sae.any, settings.n_resamples, config.seed))
                bar.advance()
    return readings


def _shares_by_phase(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Percent of live features by phase and class: mean and standard deviation over units; and the largest layer."""
    columns = {**{name: table[name] for name in CLASSES}, "unimodal": table["visual"] + table["textual"]}
    found: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for name, values in columns.items():
        per_unit = values.groupby([table["phase"], table["model"], table["seed"]]).mean()
        layer_means = values.groupby([table["phase"], table["model"], table["layer"]]).mean()
        for phase in sorted(table["phase"].unique()):
            own = per_unit[phase]
            found.setdefault(str(phase), {})[name] = {
                "mean": float(own.mean()), "sd": float(own.std(ddof=1)) if len(own) > 1 else None, "n": len(own),
                "peak": float(layer_means[phase].max()),
            }
    return found


def _figures(table: pd.DataFrame, found: dict[str, Any]) -> list[Figure]:
    drawn: list[Figure] = []
    for model, own in table.groupby("model", sort=False):
        by_layer = own.groupby("layer")
        x, n = own["layer"].unique().tolist(), own["seed"].nunique()
        activity = Line("cross-modal activity", by_layer["activity"].mean().to_numpy(),
                        by_layer["activity_low"].mean().to_numpy(), by_layer["activity_high"].mean().to_numpy())
        drawn.append(Curves(
            f"{model}: cross-modal activity by layer",
            "0: every feature fires for one modality; 1: all fire equally for both. Mean over seeds", "layer", x,
            [activity], "mean of the seeds' 95% basic bootstrap intervals over samples", n))
        shares = [Line(name.replace("_", "-"), by_layer[name].mean().to_numpy(), by_layer[name].min().to_numpy(),
                       by_layer[name].max().to_numpy()) for name in CLASSES]
        drawn.append(Curves(
            f"{model}: classes by layer", "percent of live features, mean over seeds", "layer", x, shares,
            "range over seeds", n))
    return [*drawn, _listing(found)]


def _listing(found: dict[str, Any]) -> Listing:
    """Change points of every model beside a straight line."""
    rows: list[list[str | float | int | None]] = []
    pooled = {"all units, on 12 relative depths": found["pooled_changes"]} if found["pooled_changes"] else {}
    for name, changes in (found["changes"] | pooled).items():
        places = ", ".join(
            f"{at} [{low:g}, {high:g}]"
            for at, low, high in zip(changes["at"], changes["low"], changes["high"], strict=True)
        )
        rows.append([name, places or "none", changes["preferred"], changes["bic"], changes["bic_line"],
                     changes["bic_constant"]])
    return Listing(
        "Change points of the cross-modal activity", "First layer of each further piece, with the 95% range over "
        "resamples; BIC of the pieces, of a straight line and of one constant: the smallest is preferred",
        ("model", "change points", "preferred", "BIC pieces", "line", "constant"), rows)
