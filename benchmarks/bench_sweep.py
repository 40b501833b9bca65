"""A sweep of 5 seeds × 4 λ1 on one pass over the activations, against the sum of its twenty single runs.

    python benchmarks/bench_sweep.py [--d 128 --n-latents 512 --records 16384 --epochs 2 --rounds 3 --clock wall]

Both do what `cmma train-sae` does between its start and its commit, on shards that are written for the purpose: open
them, fit the standardiser, train, log, measure on held-out records, save checkpoints. Reading is the time spent in the
reader: opening shards, decoding bf16, shuffling, cutting batches; the rest is arithmetic. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from cmma.activations.reader import ShardReader
from cmma.artifacts.shards import ShardWriter
from cmma.artifacts.store import Artifact
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train_together
from cmma.sae.training.run import Run

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
JOBS = [(seed, lambda1) for seed in range(5) for lambda1 in (0.1, 0.3, 1.0, 3.0)]
LAYER, PER_SHARD, PER_SAMPLE = 0, 512, 16


class Cost(NamedTuple):
    """Seconds, and those of them that were spent in the reader."""

    seconds: float
    reading: float


class TimedReader(ShardReader):
    """Adds up the time that its batches take, up to the float32 that training sees."""

    def __init__(self, artifact: Artifact, clock: Callable[[], float]) -> None:
        began = clock()
        super().__init__(artifact, LAYER)
        self.clock, self.seconds = clock, clock() - began

    def batches(self, *how: Any, **more: Any) -> Iterator[RecordBatch]:
        """See `ShardReader.batches`."""
        return self._timed(super().batches(*how, **more))

    def held_out(self, batch_size: int) -> Iterator[RecordBatch]:
        """See `ShardReader.held_out`."""
        return self._timed(super().held_out(batch_size))

    def _timed(self, batches: Iterator[RecordBatch]) -> Iterator[RecordBatch]:
        while True:
            began = self.clock()
            batch = next(batches, None)
            decoded = None if batch is None else batch.to("cpu")
            self.seconds += self.clock() - began
            if decoded is None:
                return
            yield decoded


def write_shards(folder: Path, n_records: int, d: int) -> Artifact:
    """Cached activations: sparse sums of random directions in both modalities, in bf16."""
    artifact = Artifact(folder, "cache-activations", "0" * 12)
    artifact.start("")
    writer, g = ShardWriter(artifact), torch.Generator().manual_seed(0)
    directions_AD = torch.randn(4 * d, d, generator=g)
    for chunk in range(n_records // PER_SHARD):
        strength_BA = torch.rand(PER_SHARD, 4 * d, generator=g) * (torch.rand(PER_SHARD, 4 * d, generator=g) < 8 / d)
        sample_B = chunk * PER_SHARD // PER_SAMPLE + torch.arange(PER_SHARD) // PER_SAMPLE
        writer.write(chunk, {
            f"layer.{LAYER}": (strength_BA @ directions_AD).bfloat16(), "sample": sample_B,
            "position": (torch.arange(PER_SHARD) % PER_SAMPLE).int(),
            "modality": (torch.arange(PER_SHARD) % 2).to(torch.int8),
        }, rows=PER_SHARD, cursor={"start": int(sample_B[0]), "stop": int(sample_B[-1]) + 1})
    n_samples = n_records // PER_SAMPLE
    artifact.write_table("samples.parquet", pd.DataFrame({
        "sample": range(n_samples), "key": [str(index) for index in range(n_samples)], "labels": [[]] * n_samples,
        "held_out": [index % 10 == 0 for index in range(n_samples)],
    }))
    artifact.write_json("records.json", {"layers": [LAYER], "blocks": {str(LAYER): [d]}, "context": 0, "labels": []})
    return artifact


def train_jobs(
    artifact: Artifact, jobs: list[tuple[int, float]], optim: OptimConfig, n_latents: int, clock: Callable[[], float]
) -> Cost:
    """Train some of the jobs together."""
    began = clock()
    reader = TimedReader(artifact, clock)
    standardiser = Standardiser.fit(reader)
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for seed, lambda1 in jobs:
            config = preset("msae", n_latents=n_latents, lambda1=lambda1)
            sae = build_sae(config, reader.width, copy.deepcopy(standardiser), seed)
            runs.append(Run(sae, reader, optim, Path(folder) / f"{seed}-{lambda1}", seed=seed))
        train_together(runs)
    return Cost(clock() - began, reader.seconds)


def main() -> None:
    """Print both times, what share of them is reading, and which of the two bounds the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--n-latents", type=int, default=512)
    parser.add_argument("--records", type=int, default=2**14)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    optim = OptimConfig(batch=options.batch, epochs=options.epochs, patience=0)

    singles, sweeps = [], []
    with tempfile.TemporaryDirectory() as folder:
        artifact = write_shards(Path(folder), options.records, options.d)
        common = (optim, options.n_latents, CLOCKS[options.clock])
        train_jobs(artifact, JOBS[:1], *common)  # warms up
        for _ in range(options.rounds):
            costs = [train_jobs(artifact, [job], *common) for job in JOBS]
            singles.append(Cost(*map(sum, zip(*costs, strict=True))))
            sweeps.append(train_jobs(artifact, JOBS, *common))

    print(f"{len(JOBS)} dictionaries (msae), d={options.d} K={options.n_latents}, {options.records} records, "
          f"{options.epochs:g} epochs, {options.threads} threads, {options.clock} clock, median of {options.rounds}")
    print(f"{'':16s} {'seconds':>9s} {'reading':>9s} {'share':>7s}")
    for name, costs in (("twenty single runs", singles), ("one sweep", sweeps)):
        seconds, reading = (statistics.median(values) for values in zip(*costs, strict=True))
        print(f"{name:18s} {seconds:7.2f} {reading:9.2f} {100 * reading / seconds:6.1f}%")
    ratio = statistics.median(sweep.seconds / single.seconds for sweep, single in zip(sweeps, singles, strict=True))
    share = statistics.median(sweep.reading / sweep.seconds for sweep in sweeps)
    print(f"the sweep takes {100 * ratio:.1f}% of the sum; it is bound by {'reading' if share > 0.5 else 'arithmetic'}")


if __name__ == "__main__":
    main()
