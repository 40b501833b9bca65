"""The whole chain on a tiny random BLIP: every stage runs on questions; what needs captions says why it is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cmma.artifacts.store import Artifact, list_artifacts
from cmma.models.spec import model_folder

REPOSITORY = Path(__file__).parents[2]
TINY = [
    "model=toy_blip", "model.weights=random", "model.architecture=blip-tiny", "activations.layers=[0,1]",
    "dataset.n_train=48", "dataset.n_balanced=40", "dataset.n_counter=8", "dataset.n_pairs=8", "sae.n_latents=64",
    "optim.steps=40", "optim.batch=256", "interpret.n_samples=16", "interpret.max_pages=4", "interpret.n_bootstrap=50",
    "run.traces=[noise,semantic_pair]", "run.interventions=[ablate]", "trace.max_samples=2",
    "trace.noise.draws=1", "trace.text_positions=whole", "trace.layers=[0,3]", "intervention.max_samples=6",
    "intervention.n_controls=2", "intervention.selection.n_samples=6", "intervention.selection.verify=4",
    "intervention.n_features=2", "intervention.max_new_tokens=4", "cmig.n_features=4", "cmig.n_samples=6",
    "cmig.n_selection_samples=6", "cmig.random_graphs=2", "cmig.power_law_draws=5", "metric.n_samples=8",
    "metric.n_questions=8", "metric.batch_size=4", "metric.n_bootstrap=50",
    "sae_metric.splice_samples=4", "sae_metric.n_bootstrap=50", "launch.threads=1",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not list(model_folder("builtin:toy_clip").glob("*.safetensors")), reason="toy_clip's weights are not here")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Artifact]:
    """The artifacts of a run by stage; of traces, the last."""
    folder = tmp_path_factory.mktemp("outputs")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CMMA_OUTPUTS": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "cmma.cli", "run", *TINY], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout
    return {artifact.stage: artifact for artifact in list_artifacts(folder)}


def test_records_are_of_both_towers_and_of_questions(made):
    summary = made["cache-activations"].summary
    assert summary["width"] == 64
    assert summary["joint"] == summary["samples"] == 48
    assert summary["visual"] == 48 * 10  # nine patches and CLS, below the quota
    examples = made["interpret"].read_table("examples.parquet")
    assert set(examples["grid_rows"]) == {3}
    assert "<0x3F>" in set(examples["tokens"].explode().str.strip())  # "?", one token per byte


def test_traces_patch_the_question_encoder(made):
    assert made["trace"].summary["rows"] == ["text.layers.0.resid_post", "text.layers.3.resid_post"]


def test_interventions_change_answers_and_graphs_take_whole_passes(made):
    said = pd.read_json(made["intervene"].path("generations.jsonl"), lines=True)
    assert {"key", "before", "after", "random_features", "random_direction"} <= set(said.columns)
    assert "chair_i" not in made["intervene"].summary
    assert not made["build-cmig"].summary["cost"]["resumes"]


def test_questions_are_scored_and_captions_are_not(made):
    evaluation = made["evaluate"]
    metrics = set(evaluation.read_table("metrics.parquet")["metric"])
    assert "question_accuracy" in metrics
    assert not {"chair_i", "clip_score_toy_clip"} & metrics
    assert evaluation.summary["not_measured"] == {
        "captions, hallucination": "toy_blip answers questions and writes no captions"
    }
    assert made["report"].folder.is_dir()
