"""build-cmig on a tiny random LLaVA: in chunks, killed and resumed, screened and whole."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from cmma.artifacts.store import Artifact
from cmma.cmig.config import CMIGConfig
from cmma.config import ActivationsConfig, Config, DatasetConfig, InterpretConfig, LaunchConfig, PathsConfig
from cmma.errors import MissingParent
from cmma.models.spec import ModelSpec
from cmma.sae.config import OptimConfig, preset
from cmma.stages.runner import run_stage

GRAPH = CMIGConfig(
    n_features=8, n_samples=6, n_selection_samples=6, samples_at_once=4, random_graphs=2, power_law_draws=5,
    resamples=200, max_permutations=1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    config = Config(
        model=ModelSpec(name="tiny", weights="random", source="", architecture="llava-tiny", n_layers=4),
        dataset=DatasetConfig(n_train=40, n_balanced=24, n_counter=2, n_pairs=2),
        activations=ActivationsConfig(layers=[1, 2]), layer=1, sae=preset("topk", n_latents=64, k=8),
        optim=OptimConfig(batch=256, steps=20, warmup=5), cmig=GRAPH,
        interpret=InterpretConfig(n_samples=8, max_pages=2, n_bootstrap=50),
        launch=LaunchConfig(threads=1), paths=PathsConfig(outputs=str(tmp_path_factory.mktemp("outputs"))),
    )
    for stage in ("prepare-data", "cache-activations", "train-sae", "interpret"):
        run_stage(stage, config)
    return config


@pytest.fixture(scope="module")
def whole(config) -> Artifact:
    return run_stage("build-cmig", config)


def _digest(artifact: Artifact) -> dict[str, str]:
    return {name: hashlib.sha256(artifact.path(name).read_bytes()).hexdigest()
            for name in ("nodes.parquet", "edges.parquet", "graph.json")}


def test_a_chunk_that_was_lost_is_measured_again_and_the_graph_is_the_same(config, whole):
    before = _digest(whole)
    shards = sorted(whole.path("shards").glob("*.safetensors"))
    assert len(shards) == 2  # six samples, four at once
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    whole.path("manifest.json").unlink()
    again = run_stage("build-cmig", config)
    assert _digest(again) == before
    assert shards[0].stat().st_mtime_ns == kept


def test_a_screen_that_puts_every_pair_first_changes_nothing(config, whole):
    every = run_stage("build-cmig", replace(config, cmig=replace(GRAPH, pairs_per_feature=8)))
    columns = ["source", "target", "excess", "strength", "p_excess", "q_beyond"]
    one, two = (artifact.read_table("edges.parquet")[columns] for artifact in (whole, every))
    assert one.equals(two)
    assert every.summary["strength"] == whole.summary["strength"]
    assert every.summary["screen"]["random"] == 0


def test_a_screened_graph_says_what_it_left_out(config):
    settings = replace(GRAPH, pairs_per_feature=1, random_pairs=5)
    made = run_stage("build-cmig", replace(config, cmig=settings))
    edges = made.read_table("edges.parquet")
    once = edges[edges["source"] < edges["target"]]
    assert once["place"].value_counts().to_dict() == {"top": 8, "random": 5}
    assert once["weight"].sum() == pytest.approx(28)
    assert made.summary["pairs"] == 13
    assert made.summary["pairs_of_graph"] == 28
    recall = made.summary["screen"]["recall_moderate_or_strong"]
    assert recall["found"] + recall["missed"] == (once["excess_class"] != "weak").sum()


def test_effects_on_a_later_layer_need_its_dictionary(config):
    above = replace(config, cmig=replace(GRAPH, to_layers=[2]))
    with pytest.raises(MissingParent, match=r"run: cmma train-sae layer=2"):
        run_stage("build-cmig", above)
    run_stage("train-sae", replace(config, layer=2))
    made = run_stage("build-cmig", above)
    between = made.read_table("between.parquet")
    assert set(between["target_layer"]) == {2}
    assert set(between["source"]) == set(made.read_table("nodes.parquet")["feature"])
    assert made.summary["significant_between"] == (between["q"] < 0.05).sum()
    assert "train-sae:2" in made.manifest["parents"]
