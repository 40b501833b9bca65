"""cache-activations: run the model over a split and store activation records, one shard per chunk of samples."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch.distributed as dist

from cmma.activations.capture import DTYPES, Capture, capture
from cmma.artifacts.shards import ShardWriter, read_shard
from cmma.artifacts.store import Artifact
from cmma.config import ActivationsConfig, Config
from cmma.console import progress, say
from cmma.data.tars import count_samples, read_tars
from cmma.errors import ArtifactError
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.stages.prepare_data import tars_of
from cmma.stages.runner import Stage


def run(stage: Stage) -> dict[str, Any]:
    """Store the records of every sample of the split; summary: records per modality, width, layers."""
    config = stage.config
    tars = tars_of(stage.parents["prepare-data"], config.activations.split)
    n_samples = min(count_samples(tars), config.activations.n_samples or 2**62)
    model = load_model(config.model, stage.device)
    chunks = _chunks(n_samples, config.activations.samples_per_shard)
    writer = ShardWriter(stage.artifact, stage.rank)
    todo = [chunk for chunk in range(len(chunks)) if chunk % stage.world == stage.rank and not writer.done(chunk)]
    if stage.rank == 0:
        _check_space(stage.artifact, model, config, sum(stop - start for start, stop in (chunks[c] for c in todo)))
    what = capture_of(config)
    total = sum(chunks[chunk][1] - chunks[chunk][0] for chunk in todo)
    with progress("Caching activations", total) as bar:
        for chunk in todo:
            start, stop = chunks[chunk]
            tensors = capture(model, list(read_tars(tars, start, stop)), range(start, stop), what, bar.advance)
            writer.write(chunk, tensors, rows=len(tensors["sample"]), cursor={"start": start, "stop": stop})
    if stage.world > 1:
        dist.barrier()
    return _finish(stage, model, n_samples) if stage.rank == 0 else {}


def capture_of(config: Config) -> Capture:
    """The capture settings of a configuration."""
    activations = config.activations
    return Capture(
        config.layers(), activations.visual_per_sample, activations.textual_per_sample, activations.joint,
        activations.seed, activations.context, DTYPES[activations.dtype], activations.batch_size, config.text(),
    )


def _chunks(n_samples: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n_samples)) for start in range(0, n_samples, size)]


def _check_space(artifact: Artifact, model: MultimodalModel, config: Config, n_samples: int) -> None:
    """Print the largest size that this can take, and refuse before the work when the disk is too small."""
    activations, layers = config.activations, config.layers()
    records = activations.visual_per_sample + activations.textual_per_sample + (len(model.record_blocks(0)) > 1)
    vectors = records + 2 * activations.context
    width = sum(model.record_width(layer) for layer in layers)
    needed = n_samples * vectors * width * DTYPES[activations.dtype].itemsize
    free = shutil.disk_usage(artifact.folder).free
    say(f"at most {_size(needed)} for {n_samples} samples × {records} records × {len(layers)} layers")
    if needed > free:
        raise ArtifactError(
            f"{artifact.folder} has {_size(free)} free and up to {_size(needed)} are needed; lower "
            "activations.n_samples, visual_per_sample, textual_per_sample or layers, or set paths.outputs elsewhere"
        )


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _finish(stage: Stage, model: MultimodalModel, n_samples: int) -> dict[str, Any]:
    artifact, activations = stage.artifact, stage.config.activations
    samples = stage.parents["prepare-data"].read_table("samples.parquet")
    samples = samples[samples["split"] == activations.split].sort_values("index").head(n_samples)
    keys = samples["key"].tolist()
    labels = [list(entry) for entry in samples["labels"]]
    artifact.write_table("samples.parquet", pd.DataFrame({
        "sample": range(n_samples), "key": keys, "labels": labels, "held_out": _held_out(keys, activations),
    }))
    layers = stage.config.layers()
    vocabulary = [label for label, _ in Counter(name for names in labels for name in names).most_common()]
    artifact.write_json("records.json", {
        "layers": layers, "blocks": {str(layer): list(model.record_blocks(layer)) for layer in layers},
        "context": activations.context, "labels": vocabulary[: activations.max_labels],
    })
    index = _index(artifact)
    artifact.write_table("index.parquet", index)
    counts = index["modality"].value_counts()
    return {
        "samples": n_samples, "records": len(index), "visual": int(counts.get(0, 0)), "textual": int(counts.get(1, 0)),
        "joint": int(counts.get(2, 0)), "layers": layers, "width": model.record_width(layers[0]),
    }


def _held_out(keys: Sequence[str], activations: ActivationsConfig) -> list[bool]:
    """The sample's key decides, so that a longer run keeps the split of a shorter one."""
    digests = (hashlib.sha256(f"{activations.seed}/{key}".encode()).digest() for key in keys)
    return [int.from_bytes(digest[:8], "big") < activations.held_out * 2**64 for digest in digests]


def _index(artifact: Artifact) -> pd.DataFrame:
    parts = []
    for info in artifact.sidecars():
        shard = read_shard(artifact.path("shards") / info["file"], ["sample", "position", "modality"])
        columns = {name: value.numpy() for name, value in shard.items()}
        parts.append(pd.DataFrame({"shard": info["file"], "offset": range(info["rows"]), **columns}))
    return pd.concat(parts, ignore_index=True)
