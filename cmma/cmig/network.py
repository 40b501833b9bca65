"""Numbers of the network, each beside the same number on random graphs with the same degrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import networkx as nx
import numpy as np

from cmma.cmig.powerlaw import PowerLaw, fit_power_law
from cmma.statistics.bootstrap import Interval

_SWAPS_PER_EDGE = 10
_AGAINST_RANDOM = ("clustering", "path_length", "modularity", "assortativity", "crossing")


@dataclass(frozen=True)
class AgainstRandom:
    """A network number and its distribution over degree-matched random graphs.

    Attributes:
        value: on the graph itself. random_mean, random_sd: over the random graphs (a spread, not a standard error).
        p: two-sided: how far out the value lies among the random graphs; never below 2/(graphs + 1).
    """

    value: float
    random_mean: float
    random_sd: float
    p: float


@dataclass(frozen=True)
class NetworkNumbers:
    """Structure of an undirected graph without weights.

    Attributes:
        clustering: average clustering coefficient over all nodes.
        path_length: mean shortest path in the largest connected component.
        small_world: σ = (C / C_random) / (L / L_random) (Humphries and Gurney 2008), C_random and L_random the means
            over degree-matched graphs; its bounds are the 95% range over single random graphs. NaN where undefined.
        communities: number of Louvain communities of more than one node. modularity: of that division (Newman 2006);
            random graphs have their own best division.
        assortativity: Newman's (2003) mixing coefficient of the nodes' classes: 1 where edges stay within a class, 0 by
            chance, negative where they cross. crossing: share of edges between a visual and a textual node.
        hubs: nodes of a degree above the mean by two standard deviations or more, the largest first, with their class
            and betweenness. Degrees are what random graphs share, so there is nothing to test here.
        power_law: of the degrees.
    """

    nodes: int
    edges: int
    density: float
    isolated: int
    largest_component: int
    clustering: AgainstRandom
    path_length: AgainstRandom
    small_world: Interval
    communities: int
    modularity: AgainstRandom
    assortativity: AgainstRandom
    crossing: AgainstRandom
    hubs: list[dict[str, Any]]
    power_law: PowerLaw

    def as_dict(self) -> dict:
        """Nested plain values for JSON; NaN becomes None."""
        plain = asdict(self) | {"small_world": self.small_world.as_dict(), "power_law": self.power_law.as_dict()}
        for name in _AGAINST_RANDOM:
            plain[name] = {k: None if math.isnan(v) else v for k, v in plain[name].items()}
        return plain


def network_numbers(
    graph: nx.Graph, random_graphs: int = 50, power_law_draws: int = 200, seed: int = 0
) -> NetworkNumbers:
    """Structure of an undirected graph with its isolated nodes; nodes may have a `class`, such as "visual"."""
    rng = np.random.default_rng(seed)
    classes = {node: str(name) for node, name in graph.nodes(data="class", default="")}
    found = _structure(graph, classes, seed)
    randoms = [_structure(other, classes, seed) for other in degree_matched(graph, random_graphs, rng)]
    against = {
        name: _against(found[name], np.array([other[name] for other in randoms])) for name in _AGAINST_RANDOM
    }
    randoms_G2 = np.array([(other["clustering"], other["path_length"]) for other in randoms]).reshape(-1, 2)
    return NetworkNumbers(
        nodes=len(graph),
        edges=graph.number_of_edges(),
        density=nx.density(graph),
        isolated=nx.number_of_isolates(graph),
        largest_component=max(map(len, nx.connected_components(graph)), default=0),
        small_world=_small_world((found["clustering"], found["path_length"]), randoms_G2),
        communities=int(found["communities"]),
        hubs=hubs(graph, classes),
        power_law=fit_power_law([degree for _, degree in graph.degree()], power_law_draws, seed),
        **against,
    )


def _structure(graph: nx.Graph, classes: Mapping[Any, str], seed: int) -> dict[str, float]:
    """Every number that is compared with random graphs, and the number of communities."""
    ends = [(classes[a], classes[b]) for a, b in graph.edges()]
    division = nx.community.louvain_communities(graph, weight=None, seed=seed) if ends else []
    return {
        "clustering": nx.average_clustering(graph) if len(graph) else math.nan,
        "path_length": path_length(graph),
        "modularity": nx.community.modularity(graph, division, weight=None) if ends else math.nan,
        "assortativity": assortativity(ends),
        "crossing": sum({a, b} == {"visual", "textual"} for a, b in ends) / len(ends) if ends else math.nan,
        "communities": float(sum(len(part) > 1 for part in division)),
    }


def assortativity(ends: Sequence[tuple[str, str]]) -> float:
    """(Σ e_ii − Σ a_i²) / (1 − Σ a_i²), e the shares of edge ends by class and a their sums; NaN for one class."""
    names = sorted({name for pair in ends for name in pair})
    if len(names) < 2:
        return math.nan
    mixing = np.zeros((len(names), len(names)))
    for a, b in ends:
        mixing[names.index(a), names.index(b)] += 1
    mixing = (mixing + mixing.T) / (2 * len(ends))
    chance = float((mixing.sum(axis=0) ** 2).sum())
    return (float(np.trace(mixing)) - chance) / (1 - chance)


def hubs(graph: nx.Graph, classes: Mapping[Any, str]) -> list[dict[str, Any]]:
    """Nodes far above the mean degree: `feature, class, degree, betweenness`, the largest first."""
    degree = dict(graph.degree())
    if len(set(degree.values())) < 2:
        return []
    bound = np.mean(list(degree.values())) + 2 * np.std(list(degree.values()))
    between = nx.betweenness_centrality(graph)
    found = sorted((node for node in degree if degree[node] >= bound), key=lambda node: (-degree[node], node))
    return [
        {"feature": node, "class": classes[node], "degree": degree[node], "betweenness": float(between[node])}
        for node in found
    ]


def path_length(graph: nx.Graph) -> float:
    """Mean shortest path in the largest connected component; NaN below two nodes."""
    largest = max(nx.connected_components(graph), key=len, default=())
    return nx.average_shortest_path_length(graph.subgraph(largest)) if len(largest) > 1 else math.nan


def degree_matched(graph: nx.Graph, n: int, rng: np.random.Generator) -> list[nx.Graph]:
    """`n` random simple graphs in which every node keeps its degree: ten double-edge swaps tried per edge.

    Two edges a–b, c–d become a–d, c–b unless that makes a loop or a double edge. Each graph goes on from the one
    before (a Markov chain whose stationary law is uniform over such graphs). A graph without an admissible swap,
    such as a complete one, comes back unchanged: nothing else has its degrees.
    """
    edges = [list(edge) for edge in graph.edges()]
    present = {frozenset(edge) for edge in edges}
    graphs = []
    for _ in range(n if len(edges) > 1 else 0):
        tries = _SWAPS_PER_EDGE * len(edges)
        picks = rng.integers(len(edges), size=(tries, 2)).tolist()
        turned = (rng.random(tries) < 0.5).tolist()
        for (first, second), turn in zip(picks, turned, strict=True):
            (a, b), (c, d) = edges[first], edges[second]
            if turn:
                c, d = d, c
            new_one, new_two = frozenset((a, d)), frozenset((c, b))
            if len({a, b, c, d}) < 4 or new_one in present or new_two in present:
                continue
            present -= {frozenset((a, b)), frozenset((c, d))}
            present |= {new_one, new_two}
            edges[first], edges[second] = [a, d], [c, b]
        other = nx.Graph()
        other.add_nodes_from(graph)
        other.add_edges_from(edges)
        graphs.append(other)
    return graphs


def _against(value: float, randoms: np.ndarray) -> AgainstRandom:
    if math.isnan(value) or len(randoms) < 2:
        return AgainstRandom(value, math.nan, math.nan, math.nan)
    tie = 1e-12
    tails = ((randoms >= value - tie).sum() + 1, (randoms <= value + tie).sum() + 1)
    p = float(min(1.0, 2 * min(tails) / (len(randoms) + 1)))
    return AgainstRandom(value, float(randoms.mean()), float(randoms.std(ddof=1)), p)


def _small_world(structure: tuple[float, float], randoms_G2: np.ndarray) -> Interval:
    clustering, length = structure
    n = len(randoms_G2)
    if n < 2 or math.isnan(length) or not (randoms_G2[:, 0] > 0).all():
        return Interval(math.nan, math.nan, math.nan, n, "undefined: no edges, or random graphs without triangles")
    mean_clustering, mean_length = randoms_G2.mean(axis=0)
    value = float((clustering / mean_clustering) / (length / mean_length))
    each = (clustering / randoms_G2[:, 0]) / (length / randoms_G2[:, 1])
    low, high = np.quantile(each, [0.025, 0.975])
    return Interval(value, float(low), float(high), n, "95% range over degree-matched random graphs")
