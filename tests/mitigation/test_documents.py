"""docs/hallucination.md states what was collected from artifacts, and the report what was tested."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from cmma.artifacts.store import Artifact
from cmma.stages.mitigate import hallucination_changes

SCRIPT = Path(__file__).parents[2] / "scripts" / "mitigation_table.py"
NOTHING = {"before": 0.3, "value": 0.1, "change_low": math.nan, "change_high": math.nan, "d": -1.25, "p_holm": 0.01}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mitigation_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_states_the_collected_numbers(script):
    text, seeds = script.DOCUMENT.read_text(encoding="utf-8"), json.loads(script.NUMBERS.read_text(encoding="utf-8"))
    assert script.rewritten(text, seeds) == text
    assert [found["seed"] for found in seeds] == list(range(len(seeds)))


def test_seeds_are_averaged_with_their_t_interval(script, tmp_path):
    """−60, −70 and −80 have mean −70 and half-width 4.303 · 10 / √3."""
    for seed, change in enumerate((-60.0, -70.0, -80.0)):
        trained = Artifact(tmp_path, "train-sae", f"a{seed}")
        trained.start("{}\n")
        trained.commit(version=1, config={"seed": seed}, parents={}, summary={"layer": 1}, device="cpu", seconds=1.0)
        made = Artifact(tmp_path, "mitigate", f"b{seed}")
        made.start("{}\n")
        made.write_table("test.parquet", pd.DataFrame([
            {"condition": "features", "split": "counter", "metric": "object", "change": change, **NOTHING},
            {"condition": "features", "split": "counter", "metric": "attribute", "change": math.nan, **NOTHING},
        ]))
        made.write_table("trigger.parquet", pd.DataFrame({"feature": [3]}))
        summary = {"selection": "union", "features": [3, 4], "strength": 1.2, "chosen": {}}
        made.commit(version=1, config={}, parents={"train-sae": f"a{seed}"}, summary=summary, device="cpu", seconds=1.0)
    lines = list(script.by_seed(script.collect(tmp_path)))
    assert lines[2].startswith("| seed 0: 2 features by union, s = 1.2 | −60.0%, d −1.25 | undefined | – |")
    assert lines[5].startswith("| **mean of 3**, t interval | −70.0% [−94.8, −45.2] | undefined | – |")
    assert lines[6].startswith("| the paper | −42.7% [−49.3, −36.1]")


def test_the_report_gets_the_change_of_the_chosen_features():
    rows = [("features", "counter", "object", -70.0), ("features", "balanced", "object", 1.0),
            ("clean", "counter", "object", 0.0), ("features", "counter", "relation", math.nan)]
    test = pd.DataFrame([
        {"condition": condition, "split": split, "metric": metric, "change": change, "change_low": change - 1,
         "change_high": change + 1, "n": 20} for condition, split, metric, change in rows
    ])  # fmt: skip
    assert hallucination_changes(test, "counter") == {
        "object": {"value": -70.0, "low": -71.0, "high": -69.0, "n": 20},
        "relation": {"value": None, "low": None, "high": None, "n": 20},
    }
