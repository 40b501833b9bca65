"""From effects to the graph: tables, networkx graphs, numbers, files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from cmma.cmig.config import CMIGConfig
from cmma.cmig.effects import Effects
from cmma.cmig.flow import modality_flow
from cmma.cmig.inference import CLASSES, class_shares, edge_table
from cmma.cmig.network import network_numbers
from cmma.cmig.screening import estimated_recall
from cmma.errors import DataError


@dataclass(frozen=True)
class CMIG:
    """A Cross-Modal Interaction Graph.

    Attributes:
        nodes: one row per feature: `feature, class, main_effect` (E|E(i) − E(∅)| in readout spreads) and whatever
            the selection recorded.
        edges: one row per direction; see `edge_table`.
        numbers: JSON-serialisable summary: counts, shares, significance, network, flow.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    numbers: dict[str, Any]


def build_graph(
    effects: Effects, features: pd.DataFrame, config: CMIGConfig, screened: pd.DataFrame | None = None
) -> CMIG:
    """Test, classify and summarise measured effects.

    Args:
        features: rows with `feature` and `class` (as `select_features` returns), covering all measured features.
        screened: the pairs of `effects` as `choose_pairs` gave them, where not all were measured.

    Network numbers are given for two undirected graphs, both of excess interactions, so that an edge is a departure
    from independence and not a main effect: `network`, the significant pairs, and `network_top`, the pairs of largest
    mean absolute excess at a fixed density. The latter tests nothing, but can be compared between models, and is there
    when interactions change their sign between samples and none is significant.
    """
    if missing := set(effects.features_K.tolist()) - set(features["feature"]):
        raise DataError(f"features {sorted(missing)[:5]} were measured but the feature table does not describe them")
    draws = (config.permutations, config.max_permutations, config.resamples)
    edges = edge_table(effects, *draws, config.strong, config.moderate, config.seed)
    nodes = features.set_index("feature").loc[effects.features_K].reset_index()
    nodes["main_effect"] = np.abs(effects.main_KN).mean(axis=1) / effects.spread
    flow = modality_flow(effects, nodes["class"].tolist(), config.permutations, config.resamples, config.seed)
    graphs = {
        "network": interaction_graph(nodes, edges, config.alpha),
        "network_top": top_graph(nodes, edges, config.top_share),
    }
    once = edges.iloc[: len(effects.pairs_P2)]
    numbers = {
        "features": len(nodes),
        "samples": len(effects.clean_N),
        "pairs": len(once),
        "pairs_of_graph": len(nodes) * (len(nodes) - 1) // 2,
        "readout_mean": float(effects.clean_N.mean()),
        "readout_spread": effects.spread,
        "alpha": config.alpha,
        "significant_excess": int((once["q_excess"] < config.alpha).sum()),
        "significant_beyond": int((edges["q_beyond"] < config.alpha).sum()),
        "median_excess_over_strength": _median_ratio(edges),
        "flow": flow.as_dict() if flow else None,
    }
    for name, graph in graphs.items():
        numbers[name] = network_numbers(graph, config.random_graphs, config.power_law_draws, config.seed).as_dict()
    for measure, table, q in (("strength", edges, "q_beyond"), ("excess", once, "q_excess")):
        shares = class_shares(effects, measure, config.strong, config.moderate, seed=config.seed)
        significant = {
            name: _share(table[q][table[f"{measure}_class"] == name] < config.alpha) for name in CLASSES
        }
        numbers[measure] = {"shares": shares.as_dict(), "significant": significant}
    if screened is not None:
        edges = edges.assign(**{name: np.tile(screened[name], 2) for name in ("screen", "place", "weight")})
        numbers["screen"] = _screen_numbers(edges.head(len(once)), config)
    return CMIG(nodes, edges, numbers)


def _screen_numbers(once: pd.DataFrame, config: CMIGConfig) -> dict[str, Any]:
    """What the screen found and missed, by its random sample of the pairs that it did not put first."""
    drawn = once[once["place"] == "random"]
    agreement = spearmanr(drawn["screen"], drawn["excess"]).statistic if len(drawn) > 2 else math.nan
    return {
        "first": int((once["place"] == "top").sum()), "random": len(drawn),
        "recall_significant": estimated_recall(once, once["q_excess"] < config.alpha).as_dict(),
        "recall_moderate_or_strong": estimated_recall(once, once["excess_class"] != "weak").as_dict(),
        "rank_correlation_random": None if math.isnan(agreement) else float(agreement),
    }  # fmt: skip


def interaction_graph(nodes: pd.DataFrame, edges: pd.DataFrame, alpha: float = 0.05) -> nx.Graph:
    """Undirected: pairs whose excess interaction is significant, `weight` = mean absolute excess."""
    return _excess_graph(nodes, edges[edges["q_excess"] < alpha])


def top_graph(nodes: pd.DataFrame, edges: pd.DataFrame, share: float = 0.2) -> nx.Graph:
    """Undirected: the `share` of pairs with the largest mean absolute excess (above zero), significant or not."""
    pairs = edges[(edges["source"] < edges["target"]) & (edges["excess"] > 0)]
    return _excess_graph(nodes, pairs.nlargest(round(share * len(edges) / 2), "excess"))


def _excess_graph(nodes: pd.DataFrame, edges: pd.DataFrame) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(_attributes(nodes))
    for row in edges[edges["source"] < edges["target"]].itertuples(index=False):
        facts = {"excess_mean": row.excess_mean, "q": row.q_excess, "strength": row.excess_class}
        graph.add_edge(row.source, row.target, weight=row.excess, **facts)
    return graph


def directed_graph(nodes: pd.DataFrame, edges: pd.DataFrame) -> nx.DiGraph:
    """All measured directions i→j with every number of the edge table; `weight` = Eq. 7."""
    graph = nx.DiGraph()
    graph.add_nodes_from(_attributes(nodes))
    for record in edges.to_dict("records"):
        ends = record.pop("source"), record.pop("target")
        graph.add_edge(*ends, weight=record["strength"], **_known(record))
    return graph


def write_graphml(graph: nx.Graph, path: Path) -> None:
    """GraphML (Gephi, Cytoscape, igraph read it). Values that are not known are left out."""
    nx.write_graphml(graph, path)


def write_json(graph: nx.Graph, path: Path) -> None:
    """networkx's node-link JSON: {"directed", "nodes": [{"id", …}], "edges": [{"source", "target", …}]}."""
    path.write_text(json.dumps(nx.node_link_data(graph, edges="edges"), allow_nan=False), encoding="utf-8")


def _attributes(nodes: pd.DataFrame) -> list[tuple[int, Mapping[str, Any]]]:
    return [(record.pop("feature"), _known(record)) for record in nodes.to_dict("records")]


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a row; NaN, which neither file format can hold, is not equal to itself."""
    return {k: v for k, v in record.items() if isinstance(v, str | bool | int | float) and v == v}


def _share(flags: pd.Series) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _median_ratio(edges: pd.DataFrame) -> float | None:
    """How much of Eq. 7 is interaction: the median of excess / strength over edges with any strength."""
    acting = edges[edges["strength"] > 0]
    return float((acting["excess"] / acting["strength"]).median()) if len(acting) else None
