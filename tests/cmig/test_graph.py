"""Configuration, selection, and the graph as a whole."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from cmma.cmig.config import CMIGConfig
from cmma.cmig.effects import pairwise_effects
from cmma.cmig.graph import build_graph, directed_graph, interaction_graph, top_graph, write_graphml, write_json
from cmma.cmig.selection import select_features, stratified
from cmma.errors import ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf" / "cmig"


def test_yaml_and_code_have_the_same_defaults():
    assert OmegaConf.to_container(OmegaConf.load(CONF / "default.yaml")) == asdict(CMIGConfig())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"tokens": "images"}, "cmig.tokens"), ({"moderate": 0.6}, "cmig.moderate"), ({"alpha": 0}, "cmig.alpha"),
     ({"n_features": 1}, "cmig.n_features"), ({"quotas": {"visual": 0.8, "textual": 0.3}}, "cmig.quotas")],
)  # fmt: skip
def test_a_wrong_value_is_named(wrong, named):
    with pytest.raises(ConfigError, match=named):
        CMIGConfig(**wrong)


def test_stratified_samples_are_as_equal_as_sizes_allow():
    strata = ["color"] * 50 + ["count"] * 3 + ["shape"] * 50
    chosen = stratified(strata, 23, seed=4)
    assert Counter(strata[i] for i in chosen) == {"color": 10, "count": 3, "shape": 10}
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, stratified(strata, 23, seed=4))
    assert not np.array_equal(chosen, stratified(strata, 23, seed=5))
    assert len(stratified(strata, 1000)) == 103


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    kinds = np.array(["visual"] * 40 + ["textual"] * 8 + ["cross_modal"] * 2)
    return pd.DataFrame({
        "feature": np.arange(50), "class": kinds, "density": np.where(np.arange(50) == 41, 0.01, 0.5),
        "attribution": rng.random(50) + (kinds == "visual"),
    })  # fmt: skip


def test_selection_takes_the_best_that_are_active_enough(scores):
    chosen = select_features(scores, 10)
    best = scores[scores.density >= 0.05].nlargest(10, "attribution")
    assert chosen.feature.tolist() == best.feature.tolist()
    assert 41 not in select_features(scores, 50).feature.tolist()


def test_quotas_are_kept_and_what_a_class_cannot_fill_goes_to_the_rest(scores):
    chosen = select_features(scores, 12, quotas={"visual": 1 / 3, "textual": 1 / 3, "cross_modal": 1 / 3})
    assert len(chosen) == len(set(chosen.feature)) == 12
    assert Counter(chosen["class"]) == {"visual": 6, "textual": 4, "cross_modal": 2}
    assert Counter(chosen.place) == {"quota": 10, "rank": 2}


def test_selection_says_when_nothing_is_active(scores):
    with pytest.raises(DataError, match="min_density"):
        select_features(scores.assign(density=0.0), 5)


@pytest.fixture(scope="module")
def planted_graph(plant):
    pairs = {(10 * i, 10 * i + 10): 0.6 for i in range(6)}
    readout = plant({10 * i: 0.4 for i in range(10)}, pairs, samples=40, noise=0.05)
    effects = pairwise_effects(readout, range(0, 100, 10))
    features = pd.DataFrame({"feature": range(0, 110, 10), "class": ["visual", "textual"] * 5 + ["mixed"]})
    config = CMIGConfig(random_graphs=5, power_law_draws=10, resamples=200, max_permutations=10_000)
    return build_graph(effects, features, config)


def test_the_interaction_graph_is_the_planted_chain(planted_graph):
    graph = interaction_graph(planted_graph.nodes, planted_graph.edges)
    assert {frozenset(edge) for edge in graph.edges()} == {frozenset((10 * i, 10 * i + 10)) for i in range(6)}
    assert len(graph) == 10
    assert planted_graph.numbers["significant_excess"] == 6
    assert planted_graph.numbers["network"]["clustering"]["value"] == 0  # a chain has no triangle
    assert planted_graph.numbers["flow"]["pairs"] == 25
    in_spreads = planted_graph.nodes.main_effect * planted_graph.numbers["readout_spread"]
    assert in_spreads.to_numpy() == pytest.approx(0.4, rel=0.2)
    json.dumps(planted_graph.numbers, allow_nan=False)


def test_the_top_graph_has_a_fixed_density_and_holds_the_strongest(planted_graph):
    graph = top_graph(planted_graph.nodes, planted_graph.edges, share=0.2)
    assert graph.number_of_edges() == 9
    assert set(interaction_graph(planted_graph.nodes, planted_graph.edges).edges()) <= set(graph.edges())
    assert planted_graph.numbers["network_top"]["density"] == pytest.approx(0.2)


def test_files_read_back_as_the_same_graph(planted_graph, tmp_path):
    graph = directed_graph(planted_graph.nodes, planted_graph.edges)
    write_graphml(graph, tmp_path / "graph.graphml")
    write_json(graph, tmp_path / "graph.json")
    back = nx.read_graphml(tmp_path / "graph.graphml", node_type=int)
    assert back.edges[0, 10]["strength"] == pytest.approx(graph.edges[0, 10]["strength"])
    assert back.nodes[10]["class"] == "textual"
    from_json = nx.node_link_graph(json.loads((tmp_path / "graph.json").read_text()), edges="edges")
    assert nx.utils.graphs_equal(from_json, graph)
    assert len(graph.edges) == 90


def test_an_undescribed_feature_is_named(plant):
    effects = pairwise_effects(plant({0: 1, 1: 1}, {}, samples=5), range(2))
    with pytest.raises(DataError, match=r"\[1\]"):
        build_graph(effects, pd.DataFrame({"feature": [0], "class": ["visual"]}), CMIGConfig())
