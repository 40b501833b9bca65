"""Write the report: one folder of static pages that open from disk, without network, server or build step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from cmma.console import progress
from cmma.figures import HeatMap
from cmma.report import figures, graph, plots
from cmma.report.comparison import tables
from cmma.report.feature_pages import FeatureIndex, list_data, page_context, page_name
from cmma.report.inputs import ReportInputs
from cmma.report.pages import embedded, environment, replaced, summaries, write_forms
from cmma.report.tables import Cell

_NAVIGATION = (
    ("index", "Overview"), ("features", "Features"), ("graph", "Interaction graph"), ("causal", "Causal analyses"),
    ("phases", "Phases"), ("provenance", "Provenance"),
)


def write_report(inputs: ReportInputs, folder: Path, tau: float = 0.1, home: str = "") -> Path:
    """Write every page and every table, then put the folder in place at once.

    Args:
        inputs: what to show; missing parts print as *not measured*.
        folder: target, for example `outputs/report`; an older report there is replaced.
        tau: the specialisation threshold, drawn on the feature pages.
        home: a page above the report, from its folder; the report links back to it.

    Returns:
        The path of `index.html`.
    """
    with replaced(folder) as stage:
        _write_all(inputs, stage, tau, home)
    return folder / "index.html"


def _write_all(inputs: ReportInputs, folder: Path, tau: float, home: str) -> None:
    (folder / "features").mkdir()
    (folder / "tables").mkdir()
    pages = environment(inputs.title, _NAVIGATION, home=home, model=inputs.model, commands=inputs.commands)
    index, made = FeatureIndex.of(inputs), tables(inputs)

    def write(name: str, template: str, root: str, **context: Any) -> None:
        text = pages.get_template(template).render(root=root, page=template.removesuffix(".html"), **context)
        (folder / name).write_text(text, encoding="utf-8")

    write_forms(made.values(), folder / "tables")
    shown = {name: Markup(table.to_html("provenance.html#")) for name, table in made.items()}
    write("index.html", "index.html", "", inputs=inputs, tables=shown, cards=_cards(inputs),
          densities=_densities(inputs.features), modality_scores=_modality_scores(inputs.modality_histogram))
    write("features.html", "features.html", "", data=embedded(list_data(inputs, index)))
    write("graph.html", "graph.html", "", graphs=_graphs(inputs, index), table=shown["cmig"])
    write("causal.html", "causal.html", "", shown=[plots.draw(each) for each in inputs.causal],
          table=shown["trace"], interventions=shown["interventions"])
    write("phases.html", "phases.html", "", shown=[plots.draw(each) for each in inputs.depth], table=shown["phases"])
    write("provenance.html", "provenance.html", "", inputs=inputs, summaries=summaries(inputs.artifacts), groups=[])
    with progress("Writing feature pages", total=len(index.pages)) as bar:
        for layer, feature in index.pages:
            write(f"features/{page_name(layer, feature)}", "feature.html", "../",
                  **page_context(inputs, index, (layer, feature), tau))
            bar.advance()


def _cards(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Headline numbers: title, cell, what it is, page, and an optional figure."""
    commands, cards = inputs.commands, []
    bar, live = None, Cell(command=commands.get("interpret", ""))
    if inputs.features is not None:
        counts = inputs.features["class"].value_counts()
        bar = figures.share_bar([(name, float(counts.get(name, 0))) for name in figures.CLASS_LABELS])
        live = Cell(int(counts.sum() - counts.get("dead", 0)), digits=0)
    cards.append({"title": "live features", "cell": live, "figure": bar, "page": "features.html",
                  "about": "of " + f"{0 if inputs.features is None else len(inputs.features):,} latents"})
    cards.append({"title": "variance unexplained", "cell": _best(inputs.sae, "fvu", commands.get("train-sae", "")),
                  "about": "FVU of the best dictionary, held out", "page": "#table-sae", "figure": None})
    maps = [each.figure for each in inputs.causal if isinstance(each.figure, HeatMap)]
    peak = max((float(np.nanmax(np.abs(each.value_RC))) for each in maps if np.isfinite(each.value_RC).any()),
               default=None)
    cards.append({"title": "causal peak", "cell": Cell(peak, command=commands.get("trace", "")), "figure": None,
                  "about": maps[0].about if maps else "restored state", "page": "causal.html"})
    edges = None if inputs.edges is None else int((inputs.edges["q"] < 0.05).sum())
    cards.append({"title": "interactions, q < 0.05", "figure": None, "page": "graph.html",
                  "cell": Cell(edges, digits=0, command=commands.get("build-cmig", "")),
                  "about": f"of {0 if inputs.edges is None else len(inputs.edges):,} feature pairs"})
    measured = [(split, cells["chair_i"]) for split, cells in inputs.evaluation.items() if "chair_i" in cells]
    nothing = ("", Cell(command=commands.get("evaluate", "")))
    split, rate = max(measured, key=lambda found: found[1].value or 0.0, default=nothing)
    cards.append({"title": "hallucinated mentions", "cell": rate, "figure": None, "page": "#table-evaluation",
                  "about": f"CHAIR_i on the split {split}" if split else "CHAIR_i of generated captions"})
    return cards


def _best(frame: pd.DataFrame | None, column: str, command: str) -> Cell:
    if frame is None or column not in frame or not frame[column].notna().any():
        return Cell(command=command)
    return Cell(float(frame[column].min()), digits=3)


def _densities(features: pd.DataFrame | None) -> Markup | None:
    """How often live features fire, stacked by class."""
    if features is None or "density" not in features:
        return None
    live = features[features["density"] > 0]
    edges = np.linspace(-5, 0, 26)
    counts = {
        name: np.histogram(np.clip(np.log10(live.loc[live["class"] == name, "density"]), -5, -1e-9), edges)[0]
        for name in figures.CLASS_LABELS if name != "dead"
    }
    return figures.stacked_histogram(edges, counts, "share of tokens on which a feature is active (log scale)")


def _modality_scores(counts: Sequence[int]) -> Markup | None:
    """Live latents from those of texts alone to those of images alone; the outer bins are the 5% at either end."""
    if not sum(counts):
        return None
    by_class = {name: np.zeros(len(counts), dtype=int) for name in ("textual", "cross_modal", "visual")}
    for index, count in enumerate(counts):
        name = {0: "textual", len(counts) - 1: "visual"}.get(index, "cross_modal")
        by_class[name][index] = count
    label = "modality score: 0 fires for texts alone, 1 for images alone"
    return figures.stacked_histogram(np.linspace(0, 1, len(counts) + 1), by_class, label, log=False)


def _graphs(inputs: ReportInputs, index: FeatureIndex) -> list[dict[str, Any]]:
    if inputs.edges is None or inputs.edges.empty:
        return []
    graphs = []
    for layer, edges in inputs.edges.groupby("layer"):
        ids = set(edges["source"]) | set(edges["target"])
        rows = {node: index.rows.get((int(layer), int(node)), {}) for node in ids}
        classes = {node: row.get("class", "mixed") for node, row in rows.items()}
        labels = {node: row.get("concept") or "" for node, row in rows.items()}
        links = {node: "features/" + page_name(int(layer), int(node)) for node in ids
                 if (int(layer), int(node)) in index.examples}
        strong = graph.strongest(edges, 25)
        graphs.append({
            "layer": int(layer), "data": embedded(graph.graph_data(edges, classes, labels, links)),
            "n_nodes": len(ids),
            "n_edges": len(edges), "n_drawn": min(len(edges), graph.MAX_EDGES),
            "max_strength": float(edges["strength"].max()),
            "strong": [{
                "source": int(e.source), "target": int(e.target), "strength": f"{e.strength:.3g}",
                "excess": f"{e.excess:.3g}", "p": f"{e.p:.2g}", "q": f"{e.q:.2g}",
                "ends": [(classes[n], labels[n], links.get(n)) for n in (e.source, e.target)],
            } for e in strong.itertuples()],
        })
    return graphs
