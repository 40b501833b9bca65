"""evaluate-sae on a dictionary of a tiny random LLaVA, in this process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cmma.artifacts.store import Artifact
from cmma.config import ActivationsConfig, Config, DatasetConfig, LaunchConfig, PathsConfig
from cmma.errors import MissingParent
from cmma.evaluation.config import SAEMetricConfig
from cmma.models.spec import ModelSpec
from cmma.sae.config import OptimConfig, preset
from cmma.stages.runner import run_stage


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """Two dictionaries of layer 1 that differ in their seed; a third seed is not there."""
    config = Config(
        model=ModelSpec(name="tiny", weights="random", source="", architecture="llava-tiny", n_layers=4),
        dataset=DatasetConfig(n_train=40, n_balanced=12, n_counter=2, n_pairs=2),
        activations=ActivationsConfig(layers=[1], held_out=0.3), layer=1,
        sae=preset("topk", n_latents=64, k=4), optim=OptimConfig(batch=256, steps=20, warmup=5),
        sae_metric=SAEMetricConfig(splice_samples=6, n_bootstrap=50, batch_size=6),
        launch=LaunchConfig(threads=1), paths=PathsConfig(outputs=str(tmp_path_factory.mktemp("outputs"))),
    )
    for stage in ("prepare-data", "cache-activations", "train-sae"):
        run_stage(stage, config)
    run_stage("train-sae", replace(config, seed=1))
    return config


@pytest.fixture(scope="module")
def made(config) -> Artifact:
    settings = replace(config.sae_metric, second_seed=1)
    return run_stage("evaluate-sae", replace(config, sae_metric=settings))


def test_every_number_stands_beside_its_floors(made):
    pairs = made.read_table("pairs.parquet").set_index(["condition", "metric"])
    assert set(pairs.index.get_level_values("condition")) == {
        "dictionary", "untrained", "shuffled pairs", "two seeds, visual", "two seeds, textual",
    }
    value = pairs["value"]
    for condition in ("dictionary", "untrained"):
        assert value[condition, "l0_visual"] <= 4
    assert value["dictionary", "fvu"] < value["untrained", "fvu"]
    assert pairs["n"]["dictionary", "code_cosine"] == pairs["n"]["shuffled pairs", "code_cosine"]
    assert 0 <= value["two seeds, visual", "support_jaccard"] <= 1


def test_the_summary_agrees_with_the_one_of_training(config, made):
    trained = run_stage("train-sae", config).summary
    for name in ("fvu", "fvu_visual", "l0_textual", "dead_fraction", "n_records"):
        assert made.summary[name] == pytest.approx(trained[name], rel=1e-6)
    curve = made.summary["dead_fraction_after"]
    assert curve[str(int(trained["n_records"]))] == pytest.approx(trained["dead_fraction"])
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    live = sum(made.summary["modality_histogram"])
    assert live == round(64 * (1 - trained["dead_fraction"])) == sum(made.summary["frequency_histogram"]["all"])


def test_the_model_runs_under_every_condition(made):
    spliced = made.read_table("spliced.parquet")
    assert set(spliced["condition"]) == {"clean", "dictionary", "untrained", "mean ablation", "zero ablation"}
    for task in ("answer", "caption"):
        loss = spliced[spliced["metric"] == f"{task}_cross_entropy"]
        assert len(loss) == 5 * 3  # conditions × whose tokens
        assert (loss["n"] == 6).all()
    assert {name.split(", ")[1] for name in made.summary["recovered"]} == {"all", "visual", "textual"}


def test_zero_samples_splice_nothing(config):
    settings = replace(config.sae_metric, splice_samples=0)
    alone = run_stage("evaluate-sae", replace(config, sae_metric=settings))
    assert alone.read_table("spliced.parquet").empty
    assert alone.summary["recovered"] == {}


def test_a_seed_that_was_not_trained_is_asked_for(config):
    settings = replace(config.sae_metric, second_seed=2)
    with pytest.raises(MissingParent, match=r"run: cmma train-sae layer=1 seed=2$"):
        run_stage("evaluate-sae", replace(config, sae_metric=settings), ["layer=1", "sae_metric.second_seed=2"])


def test_an_encoder_is_no_judge_of_itself(config):
    itself = replace(config, sae_metric=replace(config.sae_metric, splice_samples=0, encoder="toy_llava"))
    named = replace(itself, model=replace(config.model, name="toy_llava"))
    for stage in ("cache-activations", "train-sae"):
        run_stage(stage, named)
    reason = run_stage("evaluate-sae", named).summary["not_measured"]["monosemanticity"]
    assert reason.startswith("toy_llava is the model itself")
