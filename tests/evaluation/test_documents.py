"""docs/dictionaries.md states what was collected from artifacts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

from cmma.artifacts.store import Artifact

SCRIPT = Path(__file__).parents[2] / "scripts" / "sae_layers.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sae_layers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_states_the_collected_numbers(script):
    text, rows = script.DOCUMENT.read_text(encoding="utf-8"), json.loads(script.NUMBERS.read_text(encoding="utf-8"))
    assert "toy_llava" in {found["model"] for found in script.SECTION.finditer(text)}
    assert script.rewritten(text, rows) == text


def artifact(root: Path, stage: str, key: str, config: dict, parents: dict[str, str], summary: dict) -> Artifact:
    made = Artifact(root, stage, key)
    made.start("{}\n")
    if stage == "evaluate-sae":
        interval = {"value": 0.98, "low": 0.95, "high": 0.99}
        made.write_table("spliced.parquet", pd.DataFrame([
            {"tokens": "all", "condition": "dictionary", "metric": "answer_cross_entropy_recovered", **interval},
            {"tokens": "all", "condition": "untrained", "metric": "answer_cross_entropy_recovered", "value": 0.5},
            {"tokens": "visual", "condition": "dictionary", "metric": "answer_cross_entropy_recovered", "value": 0.1},
            {"tokens": "all", "condition": "dictionary", "metric": "caption_cross_entropy_recovered", "value": None},
            {"tokens": "all", "condition": "untrained", "metric": "caption_cross_entropy_recovered", "value": None},
        ]))
    made.commit(version=1, config=config, parents=parents, summary=summary, device="cpu", seconds=1.0)
    return made


def test_layers_are_collected_with_what_was_recovered(script, tmp_path):
    sae = {"arch": "topk", "n_latents": 64, "k": 8, "adaptive_sparsity": False, "lambda1": 0.0}
    config = {"sae": sae, "optim": {"steps": 50, "epochs": 1.0, "lr": 1e-3}, "seed": 0}
    good = dict.fromkeys(script.QUALITY, 0.05) | {"l0_visual": 8.0, "l0_textual": 7.5, "n_records": 23_100.0}
    artifact(tmp_path, "cache-activations", "cafe", {"model": {"name": "toy_llava"}}, {}, {})
    for key, layer, dead in (("b2", 11, 0.06), ("a1", 2, 0.05)):
        parents = {"cache-activations": "cafe"}
        artifact(tmp_path, "train-sae", key, config, parents, good | {"layer": layer, "dead_fraction": dead})
    artifact(tmp_path, "train-sae", "ff", {"imported": {}}, {"cache-activations": "cafe"}, good | {"layer": 3})
    artifact(tmp_path, "evaluate-sae", "e1", {}, {"train-sae": "a1"}, {})

    lines = script.tables(script.collect(tmp_path)).splitlines()
    words = "sae=topk sae.n_latents=64 sae.k=8 optim.steps=50 optim.lr=0.001 seed=0"
    assert lines[0] == f"`{words}`: FVU ≤ 0.10 at L0 ≤ 32 with ≤ 5% dead in 1 of 2 layers."
    assert lines[4] == ("| 2 | 0.050 | 0.050 | 0.050 | 8.0 | 7.5 | 0.050 | 0.050 | 5.0% | 23,100 "
                        "| 0.980 [0.950, 0.990] (0.500) | undefined |")
    assert lines[5].endswith("| 6.0% | 23,100 | – | – |")
