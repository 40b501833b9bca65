"""Numbers of the network, each beside the same number on random graphs with the same degrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import networkx as nx
import numpy as np

from cmma.cmig.effects import Effects
from cmma.cmig.powerlaw import PowerLaw, fit_power_law
from cmma.statistics.bootstrap import Interval, bootstrap_mean
from cmma.statistics.permutation import sign_flip_p

_SWAPS_PER_EDGE = 10


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
    power_law: PowerLaw

    def as_dict(self) -> dict:
        """Nested plain values for JSON; NaN becomes None."""
        plain = asdict(self) | {"small_world": self.small_world.as_dict(), "power_law": self.power_law.as_dict()}
        for name in ("clustering", "path_length"):
            plain[name] = {k: None if math.isnan(v) else v for k, v in plain[name].items()}
        return plain


def network_numbers(
    graph: nx.Graph, random_graphs: int = 50, power_law_draws: int = 200, seed: int = 0
) -> NetworkNumbers:
    """Clustering, path length, small-world σ and power law of an undirected graph, with its isolated nodes."""
    rng = np.random.default_rng(seed)
    structure = (nx.average_clustering(graph) if len(graph) else math.nan, path_length(graph))
    randoms_G2 = np.array(
        [(nx.average_clustering(other), path_length(other)) for other in degree_matched(graph, random_graphs, rng)]
    ).reshape(-1, 2)
    clustering, length = (_against(value, randoms_G2[:, i]) for i, value in enumerate(structure))
    return NetworkNumbers(
        nodes=len(graph),
        edges=graph.number_of_edges(),
        density=nx.density(graph),
        isolated=nx.number_of_isolates(graph),
        largest_component=max(map(len, nx.connected_components(graph)), default=0),
        clustering=clustering,
        path_length=length,
        small_world=_small_world(structure, randoms_G2),
        power_law=fit_power_law([degree for _, degree in graph.degree()], power_law_draws, seed),
    )


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


@dataclass(frozen=True)
class Flow:
    """Visual→textual against textual→visual, averaged over all (visual, textual) pairs, in readout spreads.

    Attributes:
        visual_to_textual, textual_to_visual: mean Eq. 7 strength, intervals over samples.
        difference: the first minus the second, with p from swapping the two directions within samples.
        beyond_difference, beyond_p: the same after each target's own main effect is taken away, since Eq. 7 alone
            is larger towards whichever class has the larger main effects.
        pairs: number of measured (visual, textual) pairs; they count for as many as they stand for.
    """

    visual_to_textual: Interval
    textual_to_visual: Interval
    difference: Interval
    p: float
    beyond_difference: Interval
    beyond_p: float
    pairs: int

    def as_dict(self) -> dict:
        """Nested plain values for JSON."""
        return {
            name: value.as_dict() if isinstance(value, Interval) else value
            for name, value in ((field, getattr(self, field)) for field in self.__dataclass_fields__)
        }


def modality_flow(
    effects: Effects, classes: Sequence[str], permutations: int = 1000, resamples: int = 10_000, seed: int = 0
) -> Flow | None:
    """Direction of influence between modalities; None if no visual–textual pair was measured.

    Args:
        classes: specialisation class of each feature of `effects.features_K`, among them "visual" and "textual".
    """
    kind_K = np.asarray(classes)
    edges_E2, conditional_EN = effects.directed()
    source_E, target_E = kind_K[edges_E2.T]
    towards_text = (source_E == "visual") & (target_E == "textual")
    towards_image = (source_E == "textual") & (target_E == "visual")
    if not towards_text.any():
        return None
    strength_EN = np.abs(conditional_EN) / effects.spread
    beyond_EN = strength_EN - np.abs(effects.main_KN[edges_E2[:, 1]]) / effects.spread
    weight_E = np.tile(effects.weight_P, 2)

    def mean_N(values_EN: np.ndarray, of_E: np.ndarray) -> np.ndarray:
        return np.average(values_EN[of_E], axis=0, weights=weight_E[of_E])

    to_text_N, to_image_N = mean_N(strength_EN, towards_text), mean_N(strength_EN, towards_image)
    beyond_N = mean_N(beyond_EN, towards_text) - mean_N(beyond_EN, towards_image)
    return Flow(
        visual_to_textual=bootstrap_mean(to_text_N, resamples, seed),
        textual_to_visual=bootstrap_mean(to_image_N, resamples, seed),
        difference=bootstrap_mean(to_text_N - to_image_N, resamples, seed),
        p=float(sign_flip_p(to_text_N - to_image_N, permutations, seed)),
        beyond_difference=bootstrap_mean(beyond_N, resamples, seed),
        beyond_p=float(sign_flip_p(beyond_N, permutations, seed)),
        pairs=int(towards_text.sum()),
    )
