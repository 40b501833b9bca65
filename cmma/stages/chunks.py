"""Work over samples in chunks: shared out over the workers, each stored when it is done and skipped afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from cmma.artifacts.shards import ShardWriter, read_shard
from cmma.stages.runner import Stage

Compute = Callable[[int, int], dict[str, Tensor]]
"""Samples start to stop → the chunk's tensors."""


def in_chunks(stage: Stage, compute: Compute, n: int, size: int, first: int = 0) -> list[dict[str, Tensor]]:
    """Every chunk's tensors, in order, on every worker.

    A chunk does not depend on the number of workers, nor on which of them computes it.

    Args:
        n: samples in all. size: samples of a chunk.
        first: number of the first chunk, where an artifact has chunks of several kinds.
    """
    writer = ShardWriter(stage.artifact, stage.rank)
    starts = range(0, n, size)
    for index, start in enumerate(starts):
        if index % stage.world == stage.rank and not writer.done(first + index):
            stop = min(start + size, n)
            writer.write(first + index, compute(start, stop), stop - start, {"start": start, "stop": stop})
    if stage.world > 1:
        dist.barrier()
    infos = {info["chunk"]: info for info in stage.artifact.sidecars()}
    chunks = [infos[first + index] for index in range(len(starts))]
    return [read_shard(stage.artifact.path("shards") / info["file"], list(info["tensors"])) for info in chunks]
