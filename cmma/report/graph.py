"""The cross-modal interaction graph as data for the page, laid out here so that it is the same every time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

WIDTH, HEIGHT = 960.0, 620.0
MAX_EDGES = 5000  # drawn; the strongest. The table of all edges is in the artifact.
_COLUMN = {"visual": -0.8, "textual": 0.8, "cross_modal": 0.0, "mixed": 0.0}


def strongest(edges: pd.DataFrame, n: int = MAX_EDGES) -> pd.DataFrame:
    """The n strongest edges, in a fixed order."""
    return edges.sort_values(["strength", "source", "target"], ascending=[False, True, True]).head(n)


def layout(edges: pd.DataFrame, classes: Mapping[int, str]) -> dict[int, tuple[float, float]]:
    """Node positions in the unit of the drawing: a spring layout that starts with visual features left, textual right.

    Deterministic: nodes are taken in order of their id and the start is a function of class and rank.
    """
    graph = nx.Graph()
    nodes = sorted(set(edges["source"]) | set(edges["target"]))
    graph.add_nodes_from(nodes)
    for edge in edges.itertuples():
        if edge.source != edge.target:
            weight = max(graph.get_edge_data(edge.source, edge.target, {"weight": 0.0})["weight"], float(edge.strength))
            graph.add_edge(edge.source, edge.target, weight=weight)
    golden = 0.6180339887498949
    start = {
        node: np.array([_COLUMN.get(classes.get(node, ""), 0.0) + 0.3 * ((rank * golden) % 1 - 0.5),
                        2 * ((rank * golden * golden) % 1) - 1])
        for rank, node in enumerate(nodes)
    }
    if len(nodes) > 1:
        start = nx.spring_layout(graph, pos=start, k=1.6 / np.sqrt(len(nodes)), iterations=80, seed=0)
    points = np.array([start[node] for node in nodes]).reshape(len(nodes), 2)
    low, span = points.min(0, initial=0.0), np.ptp(points, axis=0) if len(points) > 1 else np.ones(2)
    margin = 36.0
    scaled = margin + (points - (points.min(0) if len(points) else low)) / np.where(span > 0, span, 1.0) * (
        np.array([WIDTH, HEIGHT]) - 2 * margin)
    return {node: (float(x), float(y)) for node, (x, y) in zip(nodes, scaled, strict=True)}


def graph_data(
    edges: pd.DataFrame, classes: Mapping[int, str], labels: Mapping[int, str], links: Mapping[int, str]
) -> dict[str, Any]:
    """What the page draws: nodes with place and size, edges with strength and q; the strongest MAX_EDGES.

    Args:
        edges: `source, target, strength, excess, p, q`.
        classes, labels: of the features. links: feature → its page, where it has one.
    """
    shown = strongest(edges)
    places = layout(shown, classes)
    summed = dict.fromkeys(places, 0.0)
    for edge in shown.itertuples():
        summed[edge.source] += float(edge.strength)
        summed[edge.target] += float(edge.strength)
    top = max(summed.values(), default=1.0) or 1.0
    return {
        "peak": float(shown["strength"].max()) if len(shown) else 1.0,
        "nodes": [
            {"id": int(node), "class": classes.get(node, "mixed"), "label": labels.get(node, ""),
             "link": links.get(node, ""), "x": round(x, 1), "y": round(y, 1),
             "size": round((summed[node] / top) ** 0.5, 3)}
            for node, (x, y) in places.items()
        ],
        "edges": [
            {"source": int(edge.source), "target": int(edge.target), "strength": float(f"{edge.strength:.6g}"),
             "excess": float(f"{edge.excess:.6g}"), "q": float(f"{edge.q:.6g}")}
            for edge in shown.itertuples()
        ],
    }
