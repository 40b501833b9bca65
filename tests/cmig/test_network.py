"""Network numbers against published graphs, networkx and planted flows."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest

from cmma.cmig.effects import Effects
from cmma.cmig.flow import modality_flow
from cmma.cmig.network import assortativity, degree_matched, hubs, network_numbers, path_length
from cmma.cmig.powerlaw import fit_power_law, power_law_draws


def test_zacharys_karate_club():
    """34 members, 78 ties, clustering 0.571, mean path 2.408 (Zachary 1977, as commonly reported)."""
    numbers = network_numbers(nx.karate_club_graph(), random_graphs=20, power_law_draws=50)
    assert (numbers.nodes, numbers.edges) == (34, 78)
    assert numbers.clustering.value == pytest.approx(0.571, abs=5e-4)
    assert numbers.path_length.value == pytest.approx(2.408, abs=5e-4)


def test_small_world_of_watts_strogatz_and_of_nothing():
    """A ring with 10% rewired edges is the model small world; a random graph has σ ≈ 1."""
    ring = network_numbers(nx.watts_strogatz_graph(120, 8, 0.1, seed=0), random_graphs=12, power_law_draws=10)
    assert ring.small_world.value > 3
    assert ring.clustering.p == pytest.approx(2 / 13)  # beyond all twelve random graphs
    chance = network_numbers(nx.gnp_random_graph(100, 0.12, seed=1), random_graphs=12, power_law_draws=10)
    assert chance.small_world.value == pytest.approx(1, abs=0.15)
    assert chance.clustering.p > 0.05


def test_random_graphs_keep_every_degree_and_differ():
    graph = nx.karate_club_graph()
    graphs = degree_matched(graph, 5, np.random.default_rng(0))
    assert all(dict(other.degree()) == dict(graph.degree()) for other in graphs)
    assert all(nx.number_of_selfloops(other) == 0 for other in graphs)
    shared = [nx.intersection(other, graph).number_of_edges() for other in graphs]
    assert np.mean(shared) < 0.6 * graph.number_of_edges()


def test_random_graphs_are_uniform():
    """Four nodes of degree one have three perfect matchings, each equally likely."""
    graph = nx.Graph([(0, 1), (2, 3)])
    graphs = degree_matched(graph, 900, np.random.default_rng(1))
    partner = np.bincount([next(iter(other[0])) for other in graphs], minlength=4)[1:]
    assert partner == pytest.approx([300, 300, 300], abs=4 * math.sqrt(900 * 2 / 9))


@pytest.mark.parametrize("graph", [nx.empty_graph(5), nx.Graph([(0, 1)]), nx.Graph()])
def test_graphs_without_structure_have_undefined_numbers(graph):
    numbers = network_numbers(graph, random_graphs=3, power_law_draws=5).as_dict()
    assert numbers["small_world"]["value"] is None
    assert numbers["power_law"]["exponent"] is None
    assert "not decidable" in numbers["power_law"]["verdict"]


def test_path_length_is_that_of_the_largest_component():
    graph = nx.disjoint_union(nx.path_graph(5), nx.complete_graph(3))
    assert path_length(graph) == nx.average_shortest_path_length(nx.path_graph(5))


def test_mixing_is_newmans_and_networkxs():
    graph = nx.karate_club_graph()
    clubs = nx.get_node_attributes(graph, "club")
    ends = [(clubs[a], clubs[b]) for a, b in graph.edges()]
    assert assortativity(ends) == pytest.approx(nx.attribute_assortativity_coefficient(graph, "club"))
    assert assortativity([("visual", "textual")] * 5) == -1
    assert math.isnan(assortativity([("visual", "visual")]))


def test_two_cliques_of_two_classes_are_two_assortative_communities():
    graph = nx.barbell_graph(8, 0)
    nx.set_node_attributes(graph, {node: "visual" if node < 8 else "textual" for node in graph}, "class")
    numbers = network_numbers(graph, random_graphs=30, power_law_draws=5)
    assert numbers.communities == 2
    assert numbers.modularity.value == pytest.approx(2 * (28 / 57 - 0.25))
    assert numbers.modularity.value > numbers.modularity.random_mean
    assert numbers.assortativity.value > 0.9 > numbers.assortativity.random_mean
    assert numbers.crossing.value == pytest.approx(1 / 57)
    assert numbers.crossing.p == pytest.approx(2 / 31)


def test_the_centre_of_a_star_is_its_hub():
    graph = nx.star_graph(12)
    (hub,) = hubs(graph, dict.fromkeys(graph, "mixed"))
    assert hub == {"feature": 0, "class": "mixed", "degree": 12, "betweenness": 1.0}
    assert hubs(nx.cycle_graph(6), dict.fromkeys(range(6), "")) == []


# --- power law --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_erdos_renyi_is_rejected(seed):
    graph = nx.fast_gnp_random_graph(400, 8 / 400, seed=seed)
    fit = fit_power_law([degree for _, degree in graph.degree()], draws=60, seed=seed)
    assert fit.rejected
    assert fit.verdict.startswith("rejected")


def test_power_laws_pass_and_their_exponent_is_recovered():
    """Rejected at most in the 10% that p ≤ 0.1 allows, and the exponent within four standard errors."""
    fits = [fit_power_law(power_law_draws(np.random.default_rng(seed), 600, 2.5, 2), 60, seed) for seed in range(12)]
    assert sum(fit.rejected for fit in fits) <= 4
    errors = [(fit.exponent - 2.5) / fit.standard_error for fit in fits]
    assert np.abs(errors).max() < 4
    assert np.std(errors) == pytest.approx(1, abs=0.6)


def test_preferential_attachment_is_not_rejected():
    """Barabási and Albert 1999: exponent 3 in the limit; finite networks lie a little below."""
    graph = nx.barabasi_albert_graph(600, 3, seed=0)
    fit = fit_power_law([degree for _, degree in graph.degree()], draws=60)
    assert not fit.rejected
    assert fit.exponent == pytest.approx(2.7, abs=0.3)


def test_draws_follow_the_zeta_law():
    """p(1) = 1/ζ(2) = 6/π², p(2) = p(1)/4."""
    draws = power_law_draws(np.random.default_rng(0), 20_000, 2.0, 1)
    assert (draws == 1).mean() == pytest.approx(6 / math.pi**2, abs=0.015)
    assert (draws == 2).mean() == pytest.approx(6 / math.pi**2 / 4, abs=0.015)


def test_few_nodes_decide_nothing():
    fit = fit_power_law(power_law_draws(np.random.default_rng(3), 24, 2.2, 2), draws=60)
    assert not fit.rejected
    assert "only" in fit.verdict


# --- flow -------------------------------------------------------------------------------------------------------------


def test_flow_takes_the_targets_main_effects_out():
    """Text features with larger main effects draw all of Eq. 7 to themselves, without any interaction."""
    rng = np.random.default_rng(0)
    n, classes = 40, ["visual", "visual", "textual", "textual", "mixed"]
    base_N = rng.normal(size=n)
    main_KN = -rng.uniform(0.5, 1.5, (5, n)) * np.array([0.1, 0.2, 1.0, 2.0, 1.0])[:, None]
    pairs_P2 = np.array([(i, j) for i in range(5) for j in range(i + 1, 5)])
    pair_PN = base_N + main_KN[pairs_P2[:, 0]] + main_KN[pairs_P2[:, 1]]
    flow = modality_flow(Effects(np.arange(5), pairs_P2, base_N, base_N + main_KN, pair_PN), classes, resamples=500)
    assert flow.pairs == 4
    assert flow.visual_to_textual.value > 5 * flow.textual_to_visual.value
    assert flow.p < 0.01
    assert flow.beyond_difference.value == pytest.approx(0, abs=1e-12)


def test_no_flow_without_both_modalities(plant):
    effects = Effects(np.arange(2), np.array([[0, 1]]), np.arange(3.0), np.zeros((2, 3)), np.zeros((1, 3)))
    assert modality_flow(effects, ["visual", "mixed"]) is None
