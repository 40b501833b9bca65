"""baselines: M-SAE beside six baselines in interpretability, hallucination and control, at one budget."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cmma import figures
from cmma.activations.reader import ShardReader
from cmma.baselines.run import Data, compare_baselines
from cmma.models import load_model
from cmma.sae.interchange.load import load_sae
from cmma.stages.runner import Stage
from cmma.stages.splits import load_split


def run(stage: Stage) -> dict[str, Any]:
    """Compare, and write the long table; summary: headline values, winners, budgets and choices."""
    config, layer, artifact = stage.config.baselines, stage.config.sae_layer(), stage.artifact
    data = stage.parents["prepare-data"]
    less, change = config.mitigation, config.control
    n_less = less.n_calibration + less.n_held_out
    samples = Data(
        load_split(data, config.split, 0, config.n_selection + config.n_measured),
        load_split(data, less.split, 0, n_less), load_split(data, less.plain_split, 0, n_less),
        load_split(data, change.split, 0, change.n_selection + change.max_samples),
    )
    dictionaries = {
        name: load_sae(stage.parents[parent].folder).to(stage.device)
        for name, parent in (("msae", "train-sae"), ("standard_sae", "train-sae:standard")) if parent in stage.parents
    }
    reader = ShardReader(stage.parents["cache-activations"], layer)
    model = load_model(stage.config.model, stage.device)
    found = compare_baselines(model, dictionaries, layer, reader, samples, config)
    artifact.write_table("baselines.parquet", found.table)
    artifact.write_table("units.parquet", found.units)
    for comparison, tried in found.tried.items():
        artifact.write_table(f"tried_{comparison}.parquet", tried)
    artifact.write_json("figures.json", figures.to_json(_figures(found.table, found.units)))
    return _summary(found.table) | found.facts


def _summary(table: pd.DataFrame) -> dict[str, Any]:
    ours = table["method"].iloc[0]
    beaten = table[table["verdict"].str.startswith("beats ")]
    return {
        "ours": {row["metric"]: None if pd.isna(row["value"]) else row["value"]
                 for row in table[table["method"] == ours].to_dict("records")},
        "winners": dict(table[table["winner"]][["metric", "method"]].itertuples(index=False)),
        "beaten_by": {metric: part["method"].tolist() for metric, part in beaten.groupby("metric", sort=False)},
        "not_applicable": {f"{row['method']}: {row['metric']}": row["reason"]
                           for row in table[table["reason"] != ""].to_dict("records")},
    }  # fmt: skip


def _figures(table: pd.DataFrame, units: pd.DataFrame) -> list[figures.Figure]:
    """All numbers of each comparison, and how well each concept is detected."""
    made: list[figures.Figure] = []
    for comparison, part in table.groupby("comparison", sort=False):
        rows = [
            (row["method"], row["metric"], *(None if pd.isna(row[name]) else row[name] for name in (
                "value", "low", "high", "control", "p")), row["n"],
             "wins the column" if row["winner"] else row["verdict"] or row["reason"])
            for row in part.to_dict("records")
        ]
        made.append(figures.Listing(
            f"Baselines: {comparison}", "95% intervals over images; control: random directions; p against them, Holm",
            ("method", "metric", "value", "low", "high", "control", "p", "n", "remark"), rows,
        ))  # fmt: skip
    if len(units):
        wide = units.pivot_table(index="method", columns="concept", values="auroc", sort=False)
        made.append(figures.HeatMap(
            "Baselines: detection by concept", "AUROC of the concept's unit on the measured images",
            wide.to_numpy(), wide.index.tolist(), wide.columns.tolist(), row_label="method",
        ))  # fmt: skip
    return made
