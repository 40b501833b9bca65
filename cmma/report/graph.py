"""The cross-modal interaction graph as inline SVG, laid out in Python so that it is the same every time."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape

import networkx as nx
import numpy as np
import pandas as pd
from markupsafe import Markup

from cmma.report.figures import CLASS_LABELS

WIDTH, HEIGHT = 960.0, 620.0
MAX_EDGES = 1500  # drawn; the strongest. The table of all edges is in the artifact.
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


def draw(
    edges: pd.DataFrame, classes: Mapping[int, str], labels: Mapping[int, str], links: Mapping[int, str]
) -> Markup:
    """The graph of one layer. Nodes and edges carry class, strength and q as data attributes for the page's filters.

    Args:
        edges: `source, target, strength, excess, p, q`; the strongest MAX_EDGES are drawn.
        classes, labels: of the features. links: feature → its page, where it has one.
    """
    shown = strongest(edges)
    places = layout(shown, classes)
    peak = float(shown["strength"].max()) if len(shown) else 1.0
    degree = dict.fromkeys(places, 0.0)
    lines = []
    for edge in reversed(list(shown.itertuples())):  # strong ones on top
        (x1, y1), (x2, y2) = places[edge.source], places[edge.target]
        share = float(edge.strength) / (peak or 1.0)
        degree[edge.source] += share
        degree[edge.target] += share
        title = f"{edge.source} → {edge.target}: I = {edge.strength:.3g}, excess {edge.excess:.3g}, q = {edge.q:.3g}"
        bend_x, bend_y = (x1 + x2) / 2 + (y2 - y1) * 0.08, (y1 + y2) / 2 - (x2 - x1) * 0.08
        lines.append(
            f'<path d="M{x1:.1f} {y1:.1f}Q{bend_x:.1f} {bend_y:.1f} {x2:.1f} {y2:.1f}" class="edge" '
            f'data-source="{edge.source}" data-target="{edge.target}" data-strength="{edge.strength:.6g}" '
            f'data-q="{edge.q:.6g}" '
            f'style="stroke-width:{0.6 + 2.4 * share:.2f};stroke-opacity:{0.12 + 0.6 * share:.2f}">'
            f"<title>{escape(title)}</title></path>")
    top = max(degree.values(), default=1.0) or 1.0
    named = {node for node, _ in sorted(degree.items(), key=lambda item: (-item[1], item[0]))[:24]}
    dots = []
    for node, (x, y) in places.items():
        kind, label = classes.get(node, "mixed"), labels.get(node, "")
        title = f"{node} · {CLASS_LABELS.get(kind, kind)}" + (f" · {label}" if label else "")
        radius = 4 + 7 * (degree[node] / top) ** 0.5
        short = textwrap.shorten(label, 24, placeholder=" …") if label else str(node)
        caption = f'<text x="{x:.1f}" y="{y - radius - 4:.1f}" text-anchor="middle">{escape(short)}</text>'
        dot = (f'<g class="node" data-id="{node}" data-class="{escape(kind)}"><title>{escape(title)}</title>'
               f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" style="fill:var(--{escape(kind)})"/>'
               f'{caption if node in named else ""}</g>')
        dots.append(f'<a href="{escape(links[node])}">{dot}</a>' if node in links else dot)
    return Markup(f'<svg class="graph" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
                  f'aria-label="cross-modal interaction graph">{"".join(lines)}{"".join(dots)}</svg>')
