"""phases on a tiny random LLaVA: parents named by one command, readings of every layer, figures for the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmma.config import ActivationsConfig, Config, DatasetConfig, LaunchConfig, PathsConfig
from cmma.errors import MissingParent
from cmma.figures import Curves, Listing, from_json
from cmma.models.spec import ModelSpec
from cmma.phases.config import PhasesConfig
from cmma.sae.config import OptimConfig, preset
from cmma.stages.runner import run_stage

LAYERS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """The whole command line of a phases run: one model, two seeds."""
    return Config(
        model=ModelSpec(name="tiny", weights="random", source="", architecture="llava-tiny", n_layers=LAYERS),
        dataset=DatasetConfig(n_train=40, n_balanced=2, n_counter=2, n_pairs=2),
        activations=ActivationsConfig(layers=[1], held_out=0.3), sae=preset("topk", n_latents=64, k=4),
        optim=OptimConfig(batch=256, steps=10, warmup=5), phases=PhasesConfig(seeds=[0, 1], n_resamples=30),
        launch=LaunchConfig(threads=1), paths=PathsConfig(outputs=str(tmp_path_factory.mktemp("outputs"))),
    )


@pytest.fixture(scope="module")
def made(config):
    run_stage("prepare-data", config)
    with pytest.raises(MissingParent) as missing:
        run_stage("phases", config)
    own = replace(config, activations=replace(config.activations, layers=list(range(LAYERS))), layer=0)
    run_stage("cache-activations", own)
    for layer in range(LAYERS):
        for seed in (0, 1):
            run_stage("train-sae", replace(own, layer=layer, seed=seed))
    return run_stage("phases", config), str(missing.value)


def test_what_is_missing_is_made_by_two_commands(made):
    _, said = made
    assert said.endswith("run: cmma cache-activations model=tiny 'activations.layers=[0,1,2,3]' && "
                         "cmma train-sae -m model=tiny 'activations.layers=[0,1,2,3]' layer=0,1,2,3 seed=0,1")


def test_every_layer_and_seed_is_read_on_the_same_samples(made):
    artifact, _ = made
    table = artifact.read_table("layers.parquet")
    assert len(table) == LAYERS * 2
    assert table["n"].nunique() == 1
    np.testing.assert_allclose(table[["visual", "textual", "cross_modal", "mixed"]].sum(axis=1), 100)
    assert (table["activity_low"] < table["activity_high"]).all()
    assert table["activity"].between(0, 1).all()
    means = table.groupby(["seed", "phase"])["activity"].mean().groupby("phase").mean()
    np.testing.assert_allclose(artifact.summary["phase_means"], means)
    assert artifact.summary["anova"]["n_units"] == 2


def test_the_report_shows_them(config, made):
    artifact, _ = made
    kinds = [type(figure) for figure in from_json(artifact.read_json("figures.json"))]
    assert kinds == [Curves, Curves, Listing]
    site = run_stage("report", config).path("site")
    assert "cross-modal activity by layer" in (site / "phases.html").read_text(encoding="utf-8")
    assert artifact.key in (site / "phases.html").read_text(encoding="utf-8")
