"""Time of the metrics on files: CHAIR, its bootstrap, and the Fréchet distance.

    python benchmarks/bench_evaluation.py [--clock cpu --threads 1 --rounds 3]

Captions are made from the words of the table and fillers, forty words in three sentences each, a tenth of them with an
apostrophe or a quote, so that they need Treebank's rules. The bootstrap is compared with scipy's vectorised BCa in
batches of 500, on the counts of the same captions; the distance with `scipy.linalg.sqrtm` of the product of the
covariances, as pytorch-fid computes it. Rounds are interleaved, medians are printed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import linalg

from cmma.evaluation.chair import chair
from cmma.evaluation.frechet import Moments, frechet_distance
from cmma.evaluation.scoring.chair import object_words
from cmma.statistics.bootstrap import bootstrap_count_ratio, bootstrap_ratio

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FILLERS = (
    "the", "a", "of", "in", "with", "is", "are", "and", "standing", "near", "bright", "small", "old", "large", "next",
    "to", "on", "wooden", "green", "open",
)  # fmt: skip


def captions(n: int, words: list[str], rng: random.Random) -> list[str]:
    """Texts of three sentences."""
    def sentence() -> str:
        some = [rng.choice(words) + rng.choice(("", "s")) if rng.random() < 0.15 else rng.choice(FILLERS)
                for _ in range(13)]
        if rng.random() < 0.03:
            some[5] += "'s"
        return " ".join(some).capitalize() + "."

    return [" ".join(sentence() for _ in range(3)) for _ in range(n)]


def through_sqrtm(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """The formula as pytorch-fid computes it."""
    cov_a, cov_b = np.cov(a_ND, rowvar=False), np.cov(b_ND, rowvar=False)
    shift_D = a_ND.mean(0) - b_ND.mean(0)
    return float(shift_D @ shift_D + np.trace(cov_a + cov_b) - 2 * np.trace(linalg.sqrtm(cov_a @ cov_b)).real)


def medians(clock: Callable[[], float], rounds: int, **runs: Callable[[], object]) -> tuple[dict[str, float], dict]:
    """Median seconds and last result of each, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, object] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            results[name] = run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--values", type=int, default=5_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--width", type=int, default=2_048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    print(f"{options.threads} threads, {options.clock} clock, median of {options.rounds}")

    words = object_words("pattern", None)
    rng = random.Random(0)
    texts = captions(options.captions, [word for word in words.node_of if " " not in word], rng)
    objects = [rng.sample(sorted(set(words.node_of.values())), 5) for _ in texts]
    words.mentions(texts[0])
    seconds, found = medians(clock, options.rounds, chair=lambda: chair(texts, objects, words))
    print(f"CHAIR of {len(texts):,} captions with four intervals of 10,000 resamples: {seconds['chair']:.2f} s "
          f"({found['chair'].n_mentions:,} mentions)")

    scores = found["chair"].captions[: options.values]
    wrong_N, mentions_N = (np.array([len(getattr(score, name)) for score in scores])
                           for name in ("hallucinated", "mentions"))
    seconds, found = medians(
        clock, options.rounds, ours=lambda: bootstrap_count_ratio(wrong_N, mentions_N),
        scipy=lambda: bootstrap_ratio(wrong_N, mentions_N),
    )  # fmt: skip
    print(f"10,000 resamples of CHAIR_i over {len(scores):,} captions: {seconds['ours']:.3f} s, scipy's batched BCa "
          f"{seconds['scipy']:.3f} s: {seconds['scipy'] / seconds['ours']:.1f}×\n  {found['ours']}\n  {found['scipy']}")

    numbers = np.random.default_rng(0)
    mixing_DD = numbers.normal(size=(options.width, options.width)) / np.sqrt(options.width)
    a_ND, b_ND = (numbers.normal(size=(options.images, options.width)) @ mixing_DD + shift for shift in (0, 0.1))
    seconds, found = medians(
        clock, min(options.rounds, 3),
        ours=lambda: frechet_distance(Moments(options.width).update(a_ND), Moments(options.width).update(b_ND), "fid"),
        sqrtm=lambda: through_sqrtm(a_ND, b_ND),
    )  # fmt: skip
    value = found["ours"].value
    print(f"Fréchet distance of {options.images:,} × {options.width:,}: {seconds['ours']:.1f} s, through sqrtm "
          f"{seconds['sqrtm']:.1f} s: {seconds['sqrtm'] / seconds['ours']:.1f}×, relative difference "
          f"{abs(value - found['sqrtm']) / value:.1e}")


if __name__ == "__main__":
    main()
