"""What the feature list and each feature's page show, as plain values for the templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from cmma.report import figures
from cmma.report.images import PIXEL_SIDE, data_uri, heat_uri
from cmma.report.inputs import ReportInputs
from cmma.report.tables import Cell

BAND_TITLES = {
    "top": "Strongest activations", "q4": "Upper quarter", "q3": "Third quarter", "q2": "Second quarter",
    "q1": "Lowest quarter of its activations", "silent": "Random samples on which it is silent",
}
_THUMBNAILS = 3
_THUMBNAIL_SIDE = 48
_N_PARTNERS = 8


def page_name(layer: int, feature: int) -> str:
    """File name of a feature's page in `features/`."""
    return f"L{layer:02d}-{feature:06d}.html"


@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """The inputs grouped by (layer, feature), so that a page costs no scan of whole tables."""

    rows: Mapping[tuple[int, int], dict[str, Any]]
    examples: Mapping[tuple[int, int], pd.DataFrame]
    logits: Mapping[tuple[int, int], pd.DataFrame]
    effects: Mapping[tuple[int, int], pd.DataFrame]
    partners: Mapping[tuple[int, int], pd.DataFrame]
    uris: dict[tuple[str, int], str] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: ReportInputs) -> FeatureIndex:
        """Index every per-feature table of the inputs."""
        rows = {} if inputs.features is None else {
            (int(row["layer"]), int(row["feature"])): row for row in inputs.features.to_dict("records")}
        partners = None
        if inputs.edges is not None:
            there = inputs.edges.rename(columns={"source": "feature", "target": "partner"}).assign(direction="→")
            back = inputs.edges.rename(columns={"target": "feature", "source": "partner"}).assign(direction="←")
            partners = pd.concat([there, back]).sort_values("strength", ascending=False, kind="stable")
        return cls(rows, _grouped(inputs.examples), _grouped(inputs.logits), _grouped(inputs.effects),
                   _grouped(partners))

    @cached_property
    def pages(self) -> list[tuple[int, int]]:
        """Features that have examples to show, in order."""
        return sorted(set(self.examples) & set(self.rows))

    def uri(self, inputs: ReportInputs, sample: str, side: int) -> str:
        """The sample's image as data URI, encoded once per size; empty when the image is not there."""
        if (sample, side) not in self.uris:
            image = inputs.images.get(sample)
            self.uris[sample, side] = "" if image is None else data_uri(image, side)
        return self.uris[sample, side]


def _grouped(frame: pd.DataFrame | None) -> dict[tuple[int, int], pd.DataFrame]:
    if frame is None or frame.empty:
        return {}
    return {(int(layer), int(feature)): part for (layer, feature), part in frame.groupby(["layer", "feature"])}


def list_data(inputs: ReportInputs, index: FeatureIndex) -> dict[str, Any]:
    """Rows of the feature list for the page's script; images are stored once and referred to by number."""
    pictures: dict[str, int] = {}
    rows = []
    for (layer, feature), row in index.rows.items():
        examples = index.examples.get((layer, feature))
        thumbnails = []
        if examples is not None:
            best = examples[examples["band"] == "top"].sort_values("rank")["sample"].head(_THUMBNAILS)
            uris = [index.uri(inputs, sample, _THUMBNAIL_SIDE) for sample in best]
            thumbnails = [pictures.setdefault(uri, len(pictures)) for uri in uris if uri]
        effects = index.effects.get((layer, feature))
        rows.append({
            "layer": layer, "id": feature, "class": row["class"], "concept": _words(row.get("concept")),
            "density": _finite(row.get("density")), "product": _finite(row.get("product")),
            "low": _finite(row.get("product_low")), "high": _finite(row.get("product_high")),
            "auroc": _finite(row.get("concept_auroc")), "iou": _finite(row.get("iou")),
            "mono": _finite(row.get("monosemanticity")),
            "effect": None if effects is None else _finite(effects["effect"].iloc[0]),
            "page": page_name(layer, feature) if examples is not None else None, "thumbs": thumbnails,
        })
    return {"rows": rows, "pictures": list(pictures)}


def page_context(inputs: ReportInputs, index: FeatureIndex, key: tuple[int, int], tau: float) -> dict[str, Any]:
    """Everything that `feature.html` prints about one feature."""
    row, position = index.rows[key], index.pages.index(key)
    neighbours = [index.pages[i] if 0 <= i < len(index.pages) else None for i in (position - 1, position + 1)]
    return {
        "layer": key[0], "feature": key[1], "kind": row["class"], "concept": _words(row.get("concept")),
        "facts": _facts(row), "selectivity": _selectivity(row, tau), "histogram": _histogram(row),
        "effects": _effects(index.effects.get(key)), "logits": _logits(index.logits.get(key)),
        "partners": _partners(index, key), "bands": _bands(inputs, index, key),
        "previous": page_name(*neighbours[0]) if neighbours[0] else None,
        "next": page_name(*neighbours[1]) if neighbours[1] else None,
    }


def _facts(row: Mapping[str, Any]) -> list[tuple[str, Cell, str]]:
    """(name, value, what it means)."""
    def cell(key: str, digits: int = 3, scale: float = 1.0, unit: str = "") -> Cell:
        value = _finite(row.get(key))
        return Cell(None if value is None else value * scale, digits=digits, unit=unit)

    return [
        ("density, visual", cell("density_visual", 3, 100, "%"), "share of visual tokens on which it is active"),
        ("density, textual", cell("density_textual", 3, 100, "%"), "share of textual tokens on which it is active"),
        ("active samples", cell("active_samples", 0), "held-out samples with any activation"),
        ("largest activation", cell("max_activation"), "over all held-out tokens"),
        ("concept AUROC", cell("concept_auroc"), "concept chosen on one half of the samples, scored on the other"),
        ("concept F1", cell("concept_f1"), "threshold chosen on one half, scored on the other"),
        ("mask IoU", cell("iou"), "patches above threshold against the concept's object masks, scoring half"),
        ("monosemanticity", cell("monosemanticity"), "activation-weighted likeness of the images it fires on"),
        ("consistency r", cell("consistency"), "Pearson correlation of visual and textual activation over samples"),
        ("Gini", cell("gini"), "inequality of its activation over samples; 1 = a single sample"),
    ]


def _selectivity(row: Mapping[str, Any], tau: float) -> tuple[Markup, Markup]:
    def interval(key: str, label: str, colour: str) -> tuple[str, float, float, float, str]:
        found = (_finite(row.get(name)) for name in (key, f"{key}_low", f"{key}_high"))
        value, low, high = (float("nan") if number is None else number for number in found)
        return label, value, low, high, colour

    pair = [interval("s_visual", "Sᵛ visual", "visual"), interval("s_textual", "Sᵗ textual", "textual")]
    return (figures.interval_rows(pair, 0.0, 2.0, [(1.0, "1")]),
            figures.interval_rows([interval("product", "Sᵛ · Sᵗ", "cross_modal")], 0.0, 1.0, [(tau, f"τ = {tau:g}")]))


def _histogram(row: Mapping[str, Any]) -> Markup | None:
    counts = [row.get("histogram_visual"), row.get("histogram_textual")]
    if any(not isinstance(side, list | np.ndarray) for side in counts):
        return None
    visual, textual = (np.asarray(side, dtype=float) for side in counts)
    edges = np.linspace(float(row["histogram_low"]), float(row["histogram_high"]), len(visual) + 1)
    return figures.mirrored_histogram(edges, visual, textual, "visual tokens", "textual tokens",
                                      "activation (log scale), share of active tokens")


def _effects(frame: pd.DataFrame | None) -> tuple[Markup, str] | None:
    if frame is None:
        return None
    bounds = frame[["effect", "low", "high"]].to_numpy(dtype=float)
    reach = max(float(np.nanmax(np.abs(bounds))), 1e-9) * 1.1
    rows = [(str(r.readout), float(r.effect), float(r.low), float(r.high), "accent") for r in frame.itertuples()]
    first = frame.iloc[0]
    kind = Cell(0.0, 0.0, 0.0, kind=str(first.get("kind", "")), n=int(first["n"]) if "n" in frame else None).remark()
    return figures.interval_rows(rows, -round(reach, 3), round(reach, 3), [(0.0, "0")]), kind


def _logits(frame: pd.DataFrame | None) -> dict[str, list[tuple[str, float, float]]] | None:
    """Sign → (token, value, share of the largest magnitude)."""
    if frame is None:
        return None
    peak = float(frame["value"].abs().max()) or 1.0
    return {
        sign: [(str(r.token), float(r.value), abs(float(r.value)) / peak)
               for r in frame[frame["sign"] == sign].sort_values("rank").itertuples()]
        for sign in ("+", "-")
    }


def _partners(index: FeatureIndex, key: tuple[int, int]) -> list[dict[str, Any]]:
    frame = index.partners.get(key)
    if frame is None:
        return []
    partners, own = [], index.rows[key]["class"]
    for edge in frame.itertuples():
        other = (key[0], int(edge.partner))
        row = index.rows.get(other, {})
        if row.get("class") in (None, own):
            continue  # partners across modalities only
        partners.append({
            "feature": other[1], "kind": row["class"], "concept": _words(row.get("concept")),
            "direction": edge.direction, "strength": f"{edge.strength:.3g}", "excess": f"{edge.excess:.3g}",
            "q": f"{edge.q:.2g}", "page": page_name(*other) if other in index.examples else None,
        })
    return partners[:_N_PARTNERS]


def _bands(inputs: ReportInputs, index: FeatureIndex, key: tuple[int, int]) -> list[dict[str, Any]]:
    frame = index.examples[key]
    peak = max(float(frame["activation"].max()), 1e-12)
    bands = []
    for band, title in BAND_TITLES.items():
        part = frame[frame["band"] == band].sort_values("rank")
        if len(part):
            bands.append({"name": band, "title": title, "examples": [
                _example(inputs, index, row, peak) for row in part.to_dict("records")]})
    return bands


def _example(inputs: ReportInputs, index: FeatureIndex, row: Mapping[str, Any], peak: float) -> dict[str, Any]:
    sample, heat = str(row["sample"]), row.get("heat")
    image = inputs.images.get(sample)
    overlay = ""
    if heat is not None and len(heat):
        overlay = heat_uri(np.asarray(heat, dtype=float).reshape(int(row["grid_rows"]), int(row["grid_cols"])) / peak)
    tokens = row.get("tokens")
    shaded = [] if tokens is None else [
        (str(token), round(min(1.0, max(0.0, float(value) / peak)), 3), f"{float(value):.3g}")
        for token, value in zip(tokens, row["token_activations"], strict=True)]
    return {
        "sample": sample, "image": index.uri(inputs, sample, 160), "overlay": overlay, "tokens": shaded,
        "pixelated": image is not None and min(image.size) <= PIXEL_SIDE, "caption": inputs.captions.get(sample, ""),
        "activation": f"{float(row['activation']):.3g}", "share": round(float(row["activation"]) / peak, 3),
    }


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _words(value: Any) -> str:
    return value if isinstance(value, str) else ""
