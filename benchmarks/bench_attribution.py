"""Attribution to all features of a dictionary in one backward pass, against one ablation per feature.

    python benchmarks/bench_attribution.py [--layer 7 --n-latents 1024 --queries 16 --features 96 --rounds 3]

The dictionary (TopK) is trained for the purpose on `toy_llava`. Ablation resumes above the layer and shares its clean
run, as everywhere in cmma; it is timed on some of the live features, drawn at random, and scaled to all of them. The
rank correlation is over those features: mean estimated against mean measured effect on the same queries. Rounds are
interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cmma.causal.attribution import attribute
from cmma.causal.intervening import queries_for
from cmma.causal.readout import collate_queries
from cmma.causal.rivals import prepare_readout
from cmma.causal.selection import ablation_effects
from cmma.config import load_group
from cmma.hooks import Trace
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.models.spec import ModelSpec
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train
from cmma.statistics.agreement import rank_correlation
from cmma.testbed.generate import generate_samples

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
AT_ONCE = 16


def dictionary(model: MultimodalModel, layer: int, n_latents: int, n_samples: int, steps: int) -> SparseAutoencoder:
    """A TopK dictionary of the layer, trained on questions about other images than those that are measured."""
    queries = queries_for(model, list(generate_samples("train", 0, n_samples)))
    vectors, modality = [], []
    for start in range(0, len(queries), 4 * AT_ONCE):
        batch = collate_queries(model, queries[start : start + 4 * AT_ONCE])
        sites = [place.site for place in model.record_sites(layer)]
        with torch.no_grad(), Trace(model, sites, stop=True) as acts:
            model(**batch)
        records = model.records(acts, batch, layer)
        kept = records.modality >= 0
        vectors.append(records.vectors[kept])
        modality.append(records.modality[kept])
    reader = TensorReader(torch.cat(vectors), torch.cat(modality))
    sae = build_sae(preset("topk", n_latents=n_latents, k=32), reader.width, Standardiser.fit(reader), 0)
    with tempfile.TemporaryDirectory() as folder:
        train(sae, reader, OptimConfig(batch=1024, steps=steps, lr=1e-3, warmup=20, patience=0), Path(folder))
    return sae.eval().requires_grad_(False)


def main() -> None:
    """Print the times, their ratio, and how well the estimates rank the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--n-latents", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--features", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="training steps of the dictionary")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = CLOCKS[options.clock]

    model = load_model(ModelSpec(**load_group("model", "toy_llava")))
    sae = dictionary(model, options.layer, options.n_latents, 1000, options.steps)
    samples = list(generate_samples("balanced", 0, options.queries))
    readout, queries = prepare_readout(model, queries_for(model, samples))
    common = (model, sae, options.layer, queries, readout)

    found = attribute(*common, batch_size=AT_ONCE)  # warms up
    live = torch.nonzero(found.density_K > 0).flatten()
    drawn = live[torch.randperm(len(live), generator=torch.Generator().manual_seed(0))[: options.features]]
    seconds: dict[str, list[float]] = {"1 backward pass": [], "10 (integrated)": [], "ablation": []}
    measured = []
    for part in drawn.chunk(options.rounds):
        for name, steps in (("1 backward pass", 1), ("10 (integrated)", 10)):
            began = clock()
            attribute(*common, steps=steps, batch_size=AT_ONCE)
            seconds[name].append(clock() - began)
        began = clock()
        measured.append(ablation_effects(*common, part.tolist(), batch_size=AT_ONCE).mean(axis=0))
        seconds["ablation"].append((clock() - began) * len(live) / len(part))

    print(f"toy_llava layer {options.layer}, TopK K={options.n_latents}, {len(live)} live features, {len(queries)} "
          f"queries, {options.threads} threads, {options.clock} clock, median of {options.rounds}")
    print(f"one ablation per feature: {statistics.median(seconds['ablation']):.1f} s "
          f"(timed on {len(drawn)} of them)")
    effect_F = np.concatenate(measured)
    for name, steps in (("1 backward pass", 1), ("10 (integrated)", 10)):
        estimate_F = attribute(*common, steps=steps, batch_size=AT_ONCE).effect_K[drawn].numpy()
        ratio = statistics.median(a / b for a, b in zip(seconds["ablation"], seconds[name], strict=True))
        agreement = rank_correlation(estimate_F, effect_F, 2000)
        print(f"{name:16s} {statistics.median(seconds[name]):6.2f} s   {ratio:6.0f}x   rank correlation {agreement}")


if __name__ == "__main__":
    main()
