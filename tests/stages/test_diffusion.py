"""The whole chain on a tiny random Stable Diffusion: every stage that applies runs, the others say why they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cmma.artifacts.store import Artifact, list_artifacts
from cmma.models.spec import model_folder
from cmma.stages.table import STAGES

REPOSITORY = Path(__file__).parents[2]
TINY = [
    "model=toy_sd", "model.weights=random", "model.architecture=stable-diffusion-tiny", "activations.layers=[0,2]",
    "dataset.n_train=48", "dataset.n_balanced=40", "dataset.n_counter=8", "dataset.n_pairs=8", "sae.n_latents=64",
    "optim.steps=40", "optim.batch=256", "interpret.n_samples=16", "interpret.max_pages=4", "interpret.n_bootstrap=50",
    "run.traces=[noise,semantic_pair]", "run.interventions=[ablate]", "trace.max_samples=3", "trace.noise.draws=1",
    "trace.text_positions=whole", "intervention.max_samples=6", "intervention.n_controls=2",
    "intervention.selection.n_samples=6", "intervention.selection.verify=4", "intervention.n_features=2",
    "cmig.n_features=4", "cmig.n_samples=6", "cmig.n_selection_samples=6", "cmig.random_graphs=2",
    "cmig.power_law_draws=5", "metric.n_samples=8", "metric.n_images=4", "metric.image_steps=2", "metric.batch_size=4",
    "metric.n_bootstrap=50", "launch.threads=1",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not list(model_folder("builtin:toy_clip").glob("*.safetensors")), reason="toy_clip's weights are not here")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[str, dict[str, Artifact]]:
    """What a run printed, and its artifacts by stage."""
    folder = tmp_path_factory.mktemp("outputs")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CMMA_OUTPUTS": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "cmma.cli", "run", *TINY], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, {artifact.stage: artifact for artifact in list_artifacts(folder)}


def test_every_stage_runs_but_those_that_read_images_or_captions(ran):
    said, made = ran
    assert set(made) == {name for name, spec in STAGES.items() if spec.chained}
    assert "trace:semantic_pair left out: a semantic pair swaps the image that is read" in said


def test_traces_and_interventions_measure_denoising(ran):
    _, made = ran
    assert made["trace"].summary["rows"] == [f"text.layers.{layer}.resid_post" for layer in range(3)]
    assert made["trace"].summary["readout"] == "denoising"
    assert made["trace"].summary["clean"] < 0  # minus a mean squared error
    assert made["intervene"].summary["readout"] == "denoising"
    assert made["build-cmig"].summary["readout"] == "denoising"
    assert not made["build-cmig"].summary["cost"]["resumes"]


def test_examples_have_heat_maps_of_the_block(ran):
    _, made = ran
    examples = made["interpret"].read_table("examples.parquet")
    assert set(examples["grid_rows"]) == {8}
    assert {len(heat) for heat in examples["heat"]} == {64}


def test_images_are_made_and_what_is_not_measured_says_why(ran):
    _, made = ran
    evaluation = made["evaluate"]
    assert len(list(evaluation.path("images/balanced").glob("*.png"))) == 4
    metrics: pd.DataFrame = evaluation.read_table("metrics.parquet")
    assert {"prompt_object", "prompt_relation", "fd_toy_clip_made_to_images"} <= set(metrics["metric"])
    assert evaluation.summary["not_measured"] == {
        "captions, questions, hallucination": "toy_sd makes images and writes no text"
    }
