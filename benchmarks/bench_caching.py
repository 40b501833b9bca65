"""Caching throughput against the bare forward pass of the same batches, interleaved in one process.

    python benchmarks/bench_caching.py [--model toy_llava] [--samples 256] [--rounds 7]

"bare" runs the collated batches through the model and throws the result away. "collate" adds the processor. "caching"
is what `cmma cache-activations` does per shard: collate, trace, choose records, write the shard.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cmma.activations.capture import capture
from cmma.artifacts.shards import ShardWriter
from cmma.artifacts.store import Artifact
from cmma.config import load_group, schema, to_config
from cmma.console import say
from cmma.data.samples import Sample
from cmma.models import load_model
from cmma.models.base import Batch
from cmma.models.spec import ModelSpec
from cmma.stages.cache_activations import capture_of
from cmma.testbed.generate import generate_samples


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print the median throughput of each variant as a share of the bare forward pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy_llava")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    config = to_config(schema())
    what = capture_of(config)
    model = load_model(ModelSpec(**load_group("model", options.model)))
    samples = list(generate_samples("train", 0, options.samples))
    groups = [samples[start : start + what.batch_size] for start in range(0, len(samples), what.batch_size)]
    generative = model.kind == "generative"

    def collate(group: list[Sample]) -> Batch:
        captions = [sample.caption for sample in group]
        return model.collate(group, [model.spec.prompt] * len(group), captions) if generative else model.collate(group)

    collated = [collate(group) for group in groups]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        artifact = Artifact(Path(folder), "cache-activations", "0" * 12)
        artifact.start("")

        def bare() -> None:
            for batch in collated:
                model(**batch)

        def with_collate() -> None:
            for group in groups:
                model(**collate(group))

        def caching() -> None:
            tensors = capture(model, samples, range(len(samples)), what)
            ShardWriter(artifact).write(0, tensors, len(tensors["sample"]), {"start": 0, "stop": len(samples)})

        variants = {"bare": bare, "collate": with_collate, "caching": caching}
        for work in variants.values():
            work()
        times = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, work in variants.items():
                times[name].append(seconds(work))
    threads = torch.get_num_threads()
    say(f"{options.model}, {len(samples)} samples, {threads} threads, median of {options.rounds} rounds")
    for name in variants:
        share = statistics.median(one / other for one, other in zip(times["bare"], times[name], strict=True))
        rate = len(samples) / statistics.median(times[name])
        say(f"  {name:8} {rate:8.1f} samples/s  {100 * share:5.1f}% of bare")


if __name__ == "__main__":
    main()
