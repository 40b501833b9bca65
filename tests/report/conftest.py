"""A whole report's input, made up: images of the shapes world, planted numbers and captions that try to break out."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from cmma.figures import HeatMap
from cmma.report.inputs import ArtifactRef, ReportInputs, Shown
from cmma.report.tables import Cell
from cmma.testbed.generate import generate_samples

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = [
    "<script>window.broken = 1</script>",
    "</script><img src=x onerror='window.broken = 2'>",
    "\"quotes' & ampersands &lt; </style> \u2028 -->",
]
LAYER, N_FEATURES, N_PAGES, GRID = 6, 3000, 30, 6


@pytest.fixture(scope="session")
def inputs() -> ReportInputs:
    """Every part filled; features 0 … N_PAGES − 1 have pages, hostile text in each place that shows text."""
    rng = np.random.default_rng(0)
    samples = list(generate_samples("balanced", 0, 40, seed=0))
    captions = {sample.key: sample.caption for sample in samples}
    captions |= {sample.key: text for sample, text in zip(samples, HOSTILE, strict=False)}
    features = _features(rng, [f"{color} {shape}" for color in ("red", "green", "blue", "yellow")
                               for shape in ("ring", "star", "cross", "disk")])
    edges = pd.DataFrame({
        "layer": LAYER, "source": rng.integers(0, 60, 260), "target": rng.integers(0, 60, 260),
        "strength": rng.gamma(1.2, 0.15, 260), "excess": rng.gamma(1.0, 0.05, 260), "p": rng.random(260) ** 3,
        "artifact": "c0ffee000003",
    }).query("source != target").drop_duplicates(["source", "target"])
    edges["q"] = edges["p"].clip(upper=1.0)
    return ReportInputs(
        title="Cross-modal mechanistic analysis", commands={
            "evaluate": "cmma evaluate model=toy_llava", "control": "cmma intervene experiment=control",
            "phases": "cmma run -m layer=range(12)",
            "build-cmig": "cmma build-cmig model=toy_llava"},
        model={"name": "toy_llava", "family": "llava", "layers": 12, "parameters": "2.4 M"},
        dataset={"dataset": "shapes", "held-out samples": 400},
        artifacts=[
            ArtifactRef("cache-activations", "c0ffee000001", "cmma cache-activations model=toy_llava",
                        "2025-01-01T10:00:00", "artifacts/cache-activations/c0ffee000001", (), "model:\n  name: toy\n",
                        {"records": 120000}),
            ArtifactRef("train-sae", "c0ffee000002", "cmma train-sae model=toy_llava", "2025-01-01T10:05:00", "",
                        ("c0ffee000001",), "sae:\n  lambda1: 0.001\n  note: </pre><script>window.broken=3</script>\n"),
            ArtifactRef("build-cmig", "c0ffee000003", "cmma build-cmig", "2025-01-01T10:09:00", "", ("c0ffee000002",)),
        ],
        environment={"cmma": "0.1.0", "torch": "2.15"},
        sae=pd.DataFrame([{"model": "toy_llava", "layer": LAYER, "arch": "msae", "n_latents": 3000, "expansion": 23.4,
                           "fvu": 0.081, "fvu_visual": 0.094, "fvu_textual": 0.062, "l0_visual": 18.2,
                           "l0_textual": 21.7, "dead_fraction": 0.04, "artifact": "c0ffee000002"}]),
        specialisation=pd.DataFrame([{"model": "toy_llava, layer 6", "visual": 31.2, "textual": 28.4,
                                      "cross_modal": 33.0, "mixed": 7.4, "dead": 4.0, "visual_error": 1.1,
                                      "textual_error": 0.9, "cross_modal_error": 1.4, "mixed_error": 0.6,
                                      "kind": "SD over 5 SAE seeds", "n": 5, "artifact": "c0ffee000002"}]),
        features=features, examples=_examples(rng, [sample.key for sample in samples]),
        images={sample.key: sample.image for sample in samples}, captions=captions,
        logits=_logits(rng), edges=edges,
        effects=pd.DataFrame([
            {"layer": LAYER, "feature": k, "readout": name, "effect": e, "low": e - 0.1, "high": e + 0.12,
             "kind": "95% CI", "n": 200}
            for k in range(N_PAGES) for name, e in (("logit diff.", -0.4 + 0.02 * k), ("p(answer)", -0.1))]),
        network={"strong pairs (I > 0.5)": Cell(4.1, 3.0, 5.2, kind="95% CI", n=300, unit="%", digits=1,
                                                artifact="c0ffee000003"),
                 "average clustering": Cell(0.41, 0.35, 0.47, kind="95% CI", n=300, artifact="c0ffee000003")},
        hallucination={"all": Cell(-21.0, -27.3, -14.9, kind="95% CI", n=300, unit="%", digits=1),
                       "object": Cell(-24.6, -31.9, -17.2, kind="95% CI", n=300, unit="%", digits=1)},
        causal=[_trace(rng)], interventions=pd.DataFrame([
            {"intervention": "ablate", "condition": c, "readout": "logit difference", "effect": e, "low": e - 0.08,
             "high": e + 0.08, "kind": "95% CI", "n": 200, "d": d, "p": p, "artifact": "c0ffee000003"}
            for c, e, d, p in (("features", -0.61, 1.2, 0.0002), ("random features", -0.03, 0.05, 0.41),
                               ("random direction", 0.01, 0.02, 0.77))]),
        evaluation={
            "balanced": {"CHAIR_s": Cell(6.1, 4.0, 8.8, kind="95% CI", n=300, unit="%", digits=1),
                         "CLIP-Score": Cell(0.71, 0.69, 0.73, kind="95% CI", n=300)},
            "counter-biased": {"CHAIR_s": Cell(31.2, 26.6, 36.0, kind="95% CI", n=300, unit="%", digits=1)}},
        spliced={
            "clean": {"answer_cross_entropy, all": Cell(0.01, 0.00, 0.02, kind="95% CI", n=200, digits=3)},
            "dictionary": {"answer_cross_entropy, all": Cell(0.11, 0.05, 0.29, kind="95% CI", n=200, digits=3),
                           "answer_cross_entropy_recovered, visual": Cell("undefined", kind="no harm", n=200)}},
        pairs={"dictionary": {"code_cosine": Cell(0.22, 0.21, 0.23, kind="95% CI", n=375, digits=3)},
               "shuffled pairs": {"code_cosine": Cell(0.21, 0.20, 0.22, kind="95% CI", n=375, digits=3)}},
        modality_histogram=[250, *range(18), 30],
    )


def _features(rng: np.random.Generator, concepts: list[str]) -> pd.DataFrame:
    n = N_FEATURES
    share = np.concatenate([np.zeros(n // 3), np.ones(n // 3), rng.random(n - 2 * (n // 3))])
    rng.shuffle(share)
    visual, dead = 2 * (1 - share), rng.random(n) < 0.04
    product = visual * (2 - visual)
    classes = np.select([dead, product > 0.2, product > 0.05, share > 0.5],
                        ["dead", "cross_modal", "mixed", "textual"], "visual")
    classes[:N_PAGES] = np.resize(["visual", "textual", "cross_modal", "mixed"], N_PAGES)
    names = rng.choice(concepts, n).astype(object)
    names[:3] = HOSTILE
    density = 10 ** rng.normal(-2, 0.6, n) * ~dead
    frame = pd.DataFrame({
        "layer": LAYER, "feature": np.arange(n), "class": classes, "concept": names, "active_samples": 40,
        "s_visual": visual, "s_visual_low": np.clip(visual - 0.1, 0, 2), "s_visual_high": np.clip(visual + 0.1, 0, 2),
        "s_textual": 2 - visual, "s_textual_low": np.clip(1.9 - visual, 0, 2),
        "s_textual_high": np.clip(2.1 - visual, 0, 2), "product": product, "product_low": np.clip(product - 0.08, 0, 1),
        "product_high": np.clip(product + 0.08, 0, 1), "density": density, "density_visual": density * 1.5,
        "density_textual": density / 2, "concept_auroc": 0.5 + 0.5 * rng.beta(3, 2, n), "concept_f1": rng.random(n),
        "iou": rng.beta(2, 4, n), "monosemanticity": rng.beta(4, 2, n), "consistency": rng.normal(0.3, 0.3, n),
        "gini": rng.random(n), "max_activation": 5.0, "histogram_low": -3.0, "histogram_high": 2.0,
    })
    bell = np.exp(-((np.arange(25) - 15) ** 2) / 12)
    frame["histogram_visual"] = [rng.poisson(200 * bell).tolist() for _ in range(n)]
    frame["histogram_textual"] = [rng.poisson(60 * np.roll(bell, 2)).tolist() for _ in range(n)]
    return frame


def _examples(rng: np.random.Generator, keys: list[str]) -> pd.DataFrame:
    rows = []
    y, x = np.mgrid[0:GRID, 0:GRID]
    for feature in range(N_PAGES):
        for band, count, level in (("top", 8, 5.0), ("q4", 3, 3.5), ("q3", 3, 2.2), ("q2", 3, 1.4), ("q1", 3, 0.6),
                                   ("silent", 4, 0.0)):
            for rank in range(count):
                cy, cx = rng.uniform(0, GRID, 2)
                heat = level * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2)
                key = keys[(feature * 3 + len(rows)) % len(keys)] if rank else keys[feature % 3]
                tokens = ["a ", HOSTILE[0], " red", " ring", " left of", " a", " <b>star</b>"]
                rows.append((LAYER, feature, band, rank, key, 7, level * (1 - 0.03 * rank), heat.ravel().tolist(), GRID,
                             GRID, tokens, (level * rng.random(len(tokens)) ** 3).tolist()))
    return pd.DataFrame(rows, columns=["layer", "feature", "band", "rank", "sample", "position", "activation", "heat",
                                       "grid_rows", "grid_cols", "tokens", "token_activations"])


def _logits(rng: np.random.Generator) -> pd.DataFrame:
    words = ["red", "ring", " star", "<b>", "blue", "left", "two", "yes"]
    return pd.DataFrame([
        (LAYER, k, sign, rank, words[rank], (1 if sign == "+" else -1) * (2.0 - 0.2 * rank) * rng.uniform(0.8, 1))
        for k in range(N_PAGES) for sign in "+-" for rank in range(8)
    ], columns=["layer", "feature", "sign", "rank", "token", "value"])


def _trace(rng: np.random.Generator) -> Shown:
    layers, positions = list(range(12)), [f"patch {r},{c}" for r in range(4) for c in range(4)] + [
        "what", " color", " is", " the", " ring", "?", "<answer>"]
    depth = np.linspace(0, 1, 12)[:, None]
    effect = np.zeros((12, len(positions)))
    effect[:, 5:7] = np.exp(-((depth - 0.2) ** 2) / 0.05)
    effect[:, -1:] = 1 / (1 + np.exp(-(depth - 0.6) * 14))
    effect[:, -3:-2] = 0.5 * np.exp(-((depth - 0.5) ** 2) / 0.03)
    effect += rng.normal(0, 0.02, effect.shape)
    figure = HeatMap("Residual stream, image pair", "recovered share of the logit difference", effect,
                     [str(layer) for layer in layers], positions, effect - 0.06, effect + 0.06, n=120)
    return Shown(figure, "c0ffee000003")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page that records everything that would have gone to the network or to the console."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.trouble = []
    tab.on("request", lambda request: tab.trouble.append(request.url)
           if not request.url.startswith(("file:", "data:")) else None)
    tab.on("console", lambda message: tab.trouble.append(message.text))
    tab.on("pageerror", lambda error: tab.trouble.append(str(error)))
    yield tab
    assert tab.trouble == []
    assert tab.evaluate("window.broken") is None
    tab.close()
