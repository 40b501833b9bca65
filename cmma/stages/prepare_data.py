"""prepare-data: generate or read samples, clean them, and write webdataset tars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cmma.artifacts.keys import expand
from cmma.artifacts.shards import seal
from cmma.artifacts.store import Artifact
from cmma.config import DatasetConfig
from cmma.console import Bar, progress, warn
from cmma.data.samples import Sample
from cmma.data.sources import Skipped, is_for_training
from cmma.data.tars import read_tars, write_tar
from cmma.errors import DataError
from cmma.stages.runner import Stage


def run(stage: Stage) -> dict[str, Any]:
    """Write every split of the data set; summary: samples per split and what was skipped."""
    dataset = stage.config.dataset
    if dataset.kind == "shapes":
        total = sum(_shapes_splits(dataset).values())
        with progress("Generating scenes", total) as bar:
            _write_shapes(stage.artifact, dataset, bar)
        skipped: list[Skipped] = []
    else:
        with progress("Reading images", None) as bar:
            skipped = _write_files(stage.artifact, dataset, bar)
    if skipped:
        names = ", ".join(f"{entry.name} ({entry.reason})" for entry in skipped[:5])
        warn(f"skipped {len(skipped)}: {names}{' …' if len(skipped) > 5 else ''}; all of them are in skipped.json")
    stage.artifact.write_json("skipped.json", [{"name": entry.name, "reason": entry.reason} for entry in skipped])
    table = _sample_table(stage.artifact)
    if table.empty:
        raise DataError(f"{dataset.path}: no image could be used; {stage.artifact.path('skipped.json')} says why")
    stage.artifact.write_table("samples.parquet", table)
    counts = table.groupby("split", sort=False).size()
    return {"samples": {split: int(count) for split, count in counts.items()}, "skipped": len(skipped)}


def tars_of(artifact: Artifact, split: str) -> list[Path]:
    """The tars of one split, in order. Raises DataError naming the splits there are."""
    found = [artifact.path("shards") / info["file"] for info in artifact.sidecars() if info["split"] == split]
    if not found:
        raise DataError(f"the data set has no split {split!r}; it has {', '.join(sorted(splits_of(artifact)))}")
    return found


def splits_of(artifact: Artifact) -> set[str]:
    """Names of the splits that the data set has."""
    return {info["split"] for info in artifact.sidecars()}


def _shapes_splits(dataset: DatasetConfig) -> dict[str, int]:
    return {
        "train": dataset.n_train, "balanced": dataset.n_balanced, "counter": dataset.n_counter,
        "pairs": 2 * dataset.n_pairs,
    }


def _write_shapes(artifact: Artifact, dataset: DatasetConfig, bar: Bar) -> None:
    from cmma.testbed.generate import generate_samples

    done = {info["file"] for info in artifact.sidecars()}
    chunk = 0
    for split, count in _shapes_splits(dataset).items():
        for number, start in enumerate(range(0, count, dataset.samples_per_shard)):
            stop = min(start + dataset.samples_per_shard, count)
            name = f"{split}-{number:06d}.tar"
            if name not in done:
                samples = generate_samples(split, start, stop, dataset.seed, concepts=dataset.concepts)
                _write(artifact, name, _counted(samples, bar.advance), split, chunk, start, "png")
            else:
                bar.advance(stop - start)
            chunk += 1


def _write_files(artifact: Artifact, dataset: DatasetConfig, bar: Bar) -> list[Skipped]:
    """Deal samples to splits by key and write a tar whenever one is full: memory holds one shard per split."""
    skipped: list[Skipped] = []
    waiting: dict[str, list[Sample]] = {"train": [], "held_out": []}
    written = dict.fromkeys(waiting, 0)
    chunk = 0

    def flush(split: str) -> None:
        nonlocal chunk
        number = written[split] // dataset.samples_per_shard
        _write(artifact, f"{split}-{number:06d}.tar", waiting[split], split, chunk, written[split], "jpeg")
        written[split] += len(waiting[split])
        waiting[split] = []
        chunk += 1

    for entry in _read(dataset):
        bar.advance()
        if isinstance(entry, Skipped):
            skipped.append(entry)
            continue
        split = "train" if is_for_training(entry.key, dataset.train_fraction, dataset.seed) else "held_out"
        waiting[split].append(entry)
        if len(waiting[split]) == dataset.samples_per_shard:
            flush(split)
    for split, rest in waiting.items():
        if rest:
            flush(split)
    return skipped


def _read(dataset: DatasetConfig) -> Iterator[Any]:
    from cmma.data.folder import read_folder
    from cmma.data.tars import read_webdataset

    path, label, side = expand(dataset.path or ""), dataset.label_column, dataset.max_side
    if dataset.kind == "folder":
        return read_folder(path, dataset.captions, label, side)
    return read_webdataset(path, label, side)


def _write(
    artifact: Artifact, name: str, samples: Iterable[Sample], split: str, chunk: int, start: int, image_format: str
) -> None:
    path = artifact.path("shards") / name
    path.parent.mkdir(exist_ok=True)
    info = write_tar(path, samples, image_format)  # type: ignore[arg-type]
    cursor = {"start": start, "stop": start + info.n}
    seal(path, chunk=chunk, rank=0, rows=info.n, sha256=info.sha256, split=split, cursor=cursor)


def _counted(samples: Iterable[Sample], advance: Callable[[], None]) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        advance()


def _sample_table(artifact: Artifact) -> pd.DataFrame:
    rows = [
        {"split": info["split"], "index": info["cursor"]["start"] + offset, "key": sample.key,
         "labels": sample.labels, "shard": info["file"]}
        for info in artifact.sidecars()
        for offset, sample in enumerate(read_tars([artifact.path("shards") / info["file"]]))
    ]
    return pd.DataFrame(rows, columns=["split", "index", "key", "labels", "shard"])
