"""Time of a report of many features, each with a page of examples: the aim is 2,000 in under two minutes.

    python benchmarks/bench_report.py [--features 2000 --side 160 --threads 1 --clock cpu]

Inputs are made up in the format of `interpret` and `build-cmig`: per feature 28 examples in six bands with a map of
16 × 16 patches and 24 shaded words each, 16 logit effects, and 8 interactions. The images are the shapes world's,
enlarged to `--side` pixels with noise, so that they cost what photographs do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cmma.report.inputs import ReportInputs
from cmma.report.site import write_report
from cmma.testbed.generate import generate_samples

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LAYER, GRID, N_WORDS = 6, 16, 24
BANDS = {"top": 12, "q4": 3, "q3": 3, "q2": 3, "q1": 3, "silent": 4}


def made_up(n_features: int, n_samples: int, side: int) -> ReportInputs:
    """A report's input with pages for all features."""
    rng = np.random.default_rng(0)
    samples = list(generate_samples("balanced", 0, n_samples))
    keys = [sample.key for sample in samples]
    return ReportInputs(
        features=_features(rng, n_features), examples=_examples(rng, n_features, keys), logits=_logits(rng, n_features),
        edges=_edges(rng, n_features), images={sample.key: _photograph(rng, sample.image, side) for sample in samples},
        captions={sample.key: sample.caption for sample in samples},
    )


def _photograph(rng: np.random.Generator, image: Image.Image, side: int) -> Image.Image:
    pixels_HWC = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray(np.clip(pixels_HWC + rng.normal(0, 8, pixels_HWC.shape), 0, 255).astype(np.uint8))


def _features(rng: np.random.Generator, n: int) -> pd.DataFrame:
    visual, density = 2 * rng.random(n), 10 ** rng.normal(-2, 0.6, n)
    scores = ("concept_auroc", "concept_f1", "iou", "monosemanticity", "consistency", "gini")
    frame = pd.DataFrame({
        "layer": LAYER, "feature": np.arange(n), "class": rng.choice(["visual", "textual", "cross_modal", "mixed"], n),
        "concept": rng.choice(["red ring", "blue star", "green disk"], n), "active_samples": 40,
        "s_visual": visual, "s_textual": 2 - visual, "product": visual * (2 - visual), "density": density,
        "density_visual": density, "density_textual": density, "max_activation": 5.0, "histogram_low": -3.0,
        "histogram_high": 2.0,
        **{name: rng.random(n) for name in scores},
    })  # fmt: skip
    for name in ("s_visual", "s_textual", "product"):
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] * 0.9, frame[name] * 1.1
    for modality in ("visual", "textual"):
        frame[f"histogram_{modality}"] = rng.poisson(50, (n, 25)).tolist()
    return frame


def _examples(rng: np.random.Generator, n_features: int, keys: list[str]) -> pd.DataFrame:
    bands = [(band, rank) for band, count in BANDS.items() for rank in range(count)]
    n = n_features * len(bands)
    heat_NP = rng.gamma(0.3, 1.0, (n, GRID * GRID)).astype(np.float32)
    return pd.DataFrame({
        "layer": LAYER, "feature": np.repeat(np.arange(n_features), len(bands)),
        "band": [band for band, _ in bands] * n_features, "rank": [rank for _, rank in bands] * n_features,
        "sample": rng.choice(keys, n), "position": 7, "activation": heat_NP.max(1), "heat": list(heat_NP),
        "grid_rows": GRID, "grid_cols": GRID, "tokens": [[f" word{i}" for i in range(N_WORDS)]] * n,
        "token_activations": list(rng.gamma(0.3, 1.0, (n, N_WORDS))),
    })  # fmt: skip


def _logits(rng: np.random.Generator, n_features: int) -> pd.DataFrame:
    return pd.DataFrame([(LAYER, k, sign, rank, f"word{rank}", (1 if sign == "+" else -1) * rng.random())
                         for k in range(n_features) for sign in "+-" for rank in range(8)],
                        columns=["layer", "feature", "sign", "rank", "token", "value"])


def _edges(rng: np.random.Generator, n_features: int) -> pd.DataFrame:
    """Among 256 features at most, as many as a graph has."""
    source, target = rng.integers(0, min(n_features, 256), (2, 8 * min(n_features, 256)))
    found = pd.DataFrame({"layer": LAYER, "source": source, "target": target, "strength": rng.random(len(source)),
                          "excess": 0.1, "p": 0.01, "q": rng.random(len(source)), "artifact": "c0ffee000001"})
    return found[found["source"] < found["target"]].drop_duplicates(["source", "target"])


def main() -> None:
    """Print how long the report took and how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]

    inputs = made_up(options.features, options.samples, options.side)
    with tempfile.TemporaryDirectory() as folder:
        began = clock()
        index = write_report(inputs, Path(folder) / "report")
        seconds = clock() - began
        files = [path for path in index.parent.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
    pages = sum(path.parent.name == "features" for path in files)
    print(f"report of {pages:,} features with {sum(BANDS.values())} examples each, images of {options.side} pixels, "
          f"{options.threads} threads, {options.clock} clock: {seconds:.1f} s, {size:.0f} MB, "
          f"{1000 * seconds / pages:.1f} ms a page")


if __name__ == "__main__":
    main()
