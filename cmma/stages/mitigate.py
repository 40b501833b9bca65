"""mitigate: features behind hallucination, made weaker; beside published ways and controls, tested once."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cmma import figures
from cmma.console import warn
from cmma.mitigation import show
from cmma.mitigation.mitigate import OURS, mitigate
from cmma.mitigation.prone import NothingHallucinated
from cmma.models import load_model
from cmma.sae.interchange.load import load_sae
from cmma.stages.runner import Stage
from cmma.stages.splits import load_split

_KNOWN = 1000
"""Training samples whose objects say what is frequent and what occurs together."""


def run(stage: Stage) -> dict[str, Any]:
    """Select and calibrate on the first images of two splits, test on the next; summary: changes and choices."""
    config, data = stage.config.mitigation, stage.parents["prepare-data"]
    wanted = config.n_calibration + config.n_held_out
    biased, plain = (load_split(data, split, 0, wanted) for split in (config.split, config.plain_split))
    known = load_split(data, "train", 0, _KNOWN)
    model = load_model(stage.config.model, stage.device)
    sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)
    try:
        found = mitigate(model, sae, stage.config.sae_layer(), biased, plain, known, config)
    except NothingHallucinated as error:
        warn(f"mitigation is not measured: {error}")
        stage.artifact.write_json("figures.json", [])
        return {"not_measured": {"all": str(error)}}

    tables = {"test": found.test, "calibration": found.tried, "attribution": found.prone.attribution,
              "prediction": found.prone.prediction, "trigger": found.trigger}
    for name, table in tables.items():
        stage.artifact.write_table(f"{name}.parquet", table)
    stage.artifact.write_jsonl("captions.jsonl", found.texts)
    stage.artifact.write_json("figures.json", figures.to_json(show.figures(found, config)))
    return show.summary(found, config)


def hallucination_changes(test: pd.DataFrame, split: str) -> dict[str, dict[str, Any]]:
    """Relative change of each rate under the chosen features, in percent: `value, low, high, n`; None = undefined.

    Named as the paper names them; attributes and relations said of whatever object, there or not, come beside.
    """
    metric_of = {"all": "all", "object": "object", "attribute": "attribute", "relation": "relation",
                 "attribute, absent objects included": "phrase", "relation, absent objects included": "statement"}
    own = test[(test["condition"] == OURS) & (test["split"] == split)].set_index("metric")
    columns = {"value": "change", "low": "change_low", "high": "change_high", "n": "n"}
    return {
        name: {key: None if pd.isna(own.loc[metric, column]) else own.loc[metric, column].item()
               for key, column in columns.items()}
        for name, metric in metric_of.items() if metric in own.index
    }  # fmt: skip
