"""Read cached activation records back, shuffled, for SAE training (`cmma.sae.records.ActivationReader`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmma.artifacts.shards import read_shard
from cmma.artifacts.store import Artifact
from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.sae.records import RecordBatch, generator, rank_slice, sample_slice, shuffled

_KEYS = ("modality", "sample", "position")


class ShardReader:
    """Records of one layer of a `cache-activations` artifact.

    Rows are shuffled within a buffer of whole shards that are drawn at random: disks read shards, not rows.

    Args:
        artifact: finished `cache-activations` artifact.
        layer: which layer's records.
        buffer_shards: shards that are mixed in memory.

    Raises:
        ConfigError: the layer is not cached.
        ArtifactError: a shard is damaged.
    """

    def __init__(self, artifact: Artifact, layer: int, buffer_shards: int = 16) -> None:
        facts = artifact.read_json("records.json")
        if layer not in facts["layers"]:
            raise ConfigError(f"layer={layer} is not cached in {artifact.folder}; it has {facts['layers']}")
        self.blocks = tuple(facts["blocks"][str(layer)])
        self.width = sum(self.blocks)
        self._layer, self._buffer_shards = layer, buffer_shards
        self._with_context = facts["context"] > 0
        samples = artifact.read_table("samples.parquet")
        self._held_out_S = torch.from_numpy(samples["held_out"].to_numpy(copy=True))
        self._labels_SL = _multi_hot(samples["labels"].tolist(), facts["labels"])
        self.n_labels = self._labels_SL.shape[1]
        self._paths = [artifact.path("shards") / info["file"] for info in artifact.sidecars()]
        self._counts = [int((~self._held_out_S[read_shard(path, ["sample"])["sample"]]).sum()) for path in self._paths]
        self.n_records = sum(self._counts)
        self._group: tuple[tuple[int, int, int, bool], RecordBatch] | None = None

    def batches(
        self, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1, together: bool = False
    ) -> Iterator[RecordBatch]:
        """See `ActivationReader.batches`. A batch may span the end of an epoch; every batch is full."""
        part = slice(0, batch_size) if together else rank_slice(batch_size, rank, world)
        step = start_step
        while True:
            batch = self._rows(step * batch_size + part.start, step * batch_size + part.stop, seed, together)
            yield batch[sample_slice(batch.sample_B, rank, world)] if together else batch
            step += 1

    def held_out(self, batch_size: int) -> Iterator[RecordBatch]:
        """See `ActivationReader.held_out`."""
        for path in self._paths:
            records = self._load(path)
            held_out = records[self._held_out_S[records.sample_B]]
            for start in range(0, len(held_out), batch_size):
                yield held_out[start : start + batch_size]

    def _rows(self, start: int, stop: int, seed: int, together: bool) -> RecordBatch:
        """Positions `start` to `stop` of the endless stream of shuffled epochs."""
        pieces, at = [], start
        while at < stop:
            epoch, offset = divmod(at, self.n_records)
            groups = self._groups(seed, epoch)
            sizes = [sum(self._counts[shard] for shard in shards) for shards in groups]
            number = 0
            while offset >= sizes[number]:
                offset -= sizes[number]
                number += 1
            take = min(stop - at, sizes[number] - offset)
            group = self._load_group(seed, epoch, number, groups[number], together)
            pieces.append(group[offset : offset + take])
            at += take
        return _concatenate(pieces)

    def _groups(self, seed: int, epoch: int) -> list[list[int]]:
        order = torch.randperm(len(self._paths), generator=generator("shards", seed, epoch)).tolist()
        return [order[start : start + self._buffer_shards] for start in range(0, len(order), self._buffer_shards)]

    def _load_group(self, seed: int, epoch: int, number: int, shards: list[int], together: bool) -> RecordBatch:
        key = seed, epoch, number, together
        if self._group is None or self._group[0] != key:
            self._group = None  # frees the last buffer before the next one is read
            loaded = [self._load(self._paths[shard]) for shard in shards]
            records = _concatenate([part[~self._held_out_S[part.sample_B]] for part in loaded])
            order = shuffled(records.sample_B, together, generator("rows", seed, epoch, number))
            self._group = key, records[order]
        return self._group[1]

    def _load(self, path: Path) -> RecordBatch:
        names = [f"layer.{self._layer}", *_KEYS]
        if self._with_context:
            names += [f"context.{self._layer}", "context_sample"]
        tensors = read_shard(path, names)
        modality_B, sample_B = tensors["modality"], tensors["sample"]
        context_BCD = None
        if self._with_context:
            context_BCD = _other_context(
                tensors[f"context.{self._layer}"], tensors["context_sample"], modality_B, sample_B
            )
        labels_BL = self._labels_SL[sample_B] if self.n_labels else None
        acts_BD = tensors[f"layer.{self._layer}"]
        return RecordBatch(acts_BD, modality_B, sample_B, tensors["position"].long(), context_BCD, labels_BL)


def _other_context(context_SMCD: Tensor, samples_S: Tensor, modality_B: Tensor, sample_B: Tensor) -> Tensor:
    """Context vectors of the modality that a record is not; zero for joint views, which have both already."""
    row_B = torch.searchsorted(samples_S, sample_B)
    other_B = torch.where(modality_B == Modality.VISUAL, int(Modality.TEXTUAL), int(Modality.VISUAL))
    context_BCD = context_SMCD[row_B, other_B]
    return context_BCD * (modality_B != Modality.JOINT)[:, None, None].to(context_BCD.dtype)


def _multi_hot(labels: list[list[str]], vocabulary: list[str]) -> Tensor:
    column = {label: index for index, label in enumerate(vocabulary)}
    hot_SL = torch.zeros(len(labels), len(vocabulary))
    for row, names in enumerate(labels):
        for name in names:
            if name in column:
                hot_SL[row, column[name]] = 1
    return hot_SL


def _concatenate(parts: list[RecordBatch]) -> RecordBatch:
    if len(parts) == 1:
        return parts[0]
    names = ("acts_BD", "modality_B", "sample_B", "position_B", "context_BCD", "labels_BL")
    columns = ([getattr(part, name) for part in parts] for name in names)
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return RecordBatch(*joined)
