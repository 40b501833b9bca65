"""Time of an interaction graph on toy_llava: against the plain way, and as the number of features grows.

    python benchmarks/bench_cmig.py [--features 64,128,256,512 --samples 200 --clock wall]

The plain way runs two whole forward passes for every pair and sample, one edit each, with as many samples in a pass as
there are. It is timed on `--plain-pairs` pairs of one chunk of samples, in turn with ours on the same chunk, and both
are scaled up to all chunks and pairs. The largest difference of the two is printed. The dictionary is an untrained
TopK: what a pass costs does not depend on training, only on how often features are active, and that is printed too. The
features are those that are active in most samples, the worst case.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from cmma.causal.queries import question_queries
from cmma.causal.readout import Readout, collate_queries
from cmma.causal.rivals import prepare_readout
from cmma.cmig.measuring import Interactions
from cmma.cmig.screening import choose_pairs
from cmma.config import load_group
from cmma.hooks.streams import splice
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser
from cmma.statistics.permutation import sign_flip_p
from cmma.testbed.generate import generate_samples

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LAYER, N_LATENTS, K_ACTIVE = 6, 1024, 32


def timed(clock: Callable[[], float], run: Callable[[], object]) -> tuple[float, object]:
    """Seconds and result."""
    start = clock()
    found = run()
    return clock() - start, found


@torch.no_grad()
def plain(measured: Interactions, queries: list, pairs: list[tuple[int, int]], readout: Readout) -> np.ndarray:
    """E(do(i)) and E(do(i, j)) by whole passes with an edit: the second of them, [pairs, samples]."""
    batch = collate_queries(measured.model, queries)
    rows = []
    for i, j in pairs:
        for off in ([i], [i, j]):
            with splice(measured.model, measured.layer, measured.sae.edit(ablate=off)):
                score_B = readout(batch, queries)
        rows.append(score_B.double().numpy())
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="64,128,256,512")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--pairs-per-feature", type=int, default=16)
    parser.add_argument("--random-pairs", type=int, default=500)
    parser.add_argument("--plain-pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]

    model = load_model(ModelSpec(**load_group("model", "toy_llava")), "cpu")
    sae = build_sae(preset("topk", n_latents=N_LATENTS, k=K_ACTIVE), model.record_width(LAYER),
                    Standardiser.identity(model.record_blocks(LAYER))).requires_grad_(False)
    asked = question_queries(generate_samples("balanced", 0, options.chunk), per_sample=1)
    readout, queries = prepare_readout(model, asked)
    every = Interactions(model, sae, LAYER, tuple(range(N_LATENTS)), readout)
    active_K = every.activity(queries).mean(axis=0)
    densest = np.argsort(-active_K, kind="stable")
    chunks = options.samples / options.chunk
    print(f"toy_llava, layer {LAYER}, {options.samples} samples of which {options.chunk} are run, {options.threads} "
          f"threads, {options.clock} clock, median of {options.rounds}")
    print(f"{'features':>8s} {'active':>7s} {'pairs':>7s} {'run':>6s} {'screen s':>9s} {'exact s':>9s} {'all s':>9s} "
          f"{'plain s':>11s} {'ratio':>6s} {'difference':>10s}")
    sizes, totals = [int(k) for k in options.features.split(",")], []
    for k in sizes:
        measured = Interactions(model, sae, LAYER, tuple(sorted(densest[:k].tolist())), readout)
        seconds: dict[str, list[float]] = {"screen": [], "exact": [], "plain": []}
        for _ in range(options.rounds):
            spent, screen = timed(clock, partial(measured.screen, queries))
            seconds["screen"].append(spent)
            score_KK = screen["screen_KK"].numpy() / len(queries)
            pairs = choose_pairs(score_KK, options.pairs_per_feature * k, options.random_pairs)
            spent, effects = timed(clock, partial(measured.effects, queries, pairs))
            seconds["exact"].append(spent)
            some = pairs.nlargest(options.plain_pairs, "screen")
            named = [(measured.features[i], measured.features[j]) for i, j in some[["i", "j"]].to_numpy()]
            spent, theirs = timed(clock, partial(plain, measured, queries, named, readout))
            seconds["plain"].append(spent)
        difference = np.abs(effects["pair_PN"].numpy()[some.index] - theirs).max()
        screen_s, exact_s, plain_s = (chunks * statistics.median(values) for values in seconds.values())
        n_pairs = k * (k - 1) // 2
        plain_s *= n_pairs / options.plain_pairs
        totals.append(screen_s + exact_s)
        print(f"{k:8d} {active_K[list(measured.features)].mean():7.2f} {n_pairs:7d} {len(pairs):6d} {screen_s:9.1f} "
              f"{exact_s:9.1f} {totals[-1]:9.1f} {plain_s:11.1f} {plain_s / totals[-1]:6.1f} {difference:10.1e}")
    if len(sizes) > 1:
        exponent = np.polyfit(np.log(sizes), np.log(totals), 1)[0]
        print(f"cost grows as features^{exponent:.2f} (all pairs: 2)")

    values_NT = np.random.default_rng(0).normal(size=(options.samples, 32_640))
    spent, _ = timed(clock, lambda: sign_flip_p(values_NT, 1000))
    print(f"permutation tests of 32,640 edges × 1,000: {spent:.1f} s")


if __name__ == "__main__":
    main()
