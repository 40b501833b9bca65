"""Activation records and the readers that deliver them (paper, section 3.1; `docs/paper.md`, Records)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from cmma.errors import DataError


@dataclass(frozen=True)
class RecordBatch:
    """Some activation records.

    Attributes:
        acts_BD: float, the record vectors in the model's own units.
        modality_B: int8, codes of `cmma.modality.Modality`.
        sample_B: int64, which sample a record is from.
        position_B: int64, which position of the sample.
        context_BCD: pooled vectors of the *other* modality of the same sample, in the model's units; None if the
            reader has none.
        labels_BL: float multi-hot labels of the sample (y of Eq. 6); None if the reader has none.
    """

    acts_BD: Tensor
    modality_B: Tensor
    sample_B: Tensor
    position_B: Tensor
    context_BCD: Tensor | None = None
    labels_BL: Tensor | None = None

    def __len__(self) -> int:
        return len(self.acts_BD)

    def __getitem__(self, index: slice | Tensor) -> RecordBatch:
        """The records of a slice or an index tensor."""
        return self._map(lambda column: column[index])

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> RecordBatch:
        """The batch on a device, floating tensors as `dtype`."""
        def move(column: Tensor) -> Tensor:
            return column.to(device, dtype if column.is_floating_point() else column.dtype, non_blocking=True)

        return self._map(move)

    def _map(self, function: Callable[[Tensor], Tensor]) -> RecordBatch:
        columns = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        mapped: dict[str, Any] = {name: None if it is None else function(it) for name, it in columns.items()}
        return RecordBatch(**mapped)


class ActivationReader(Protocol):
    """Anything that delivers activation records.

    Attributes:
        width: length d of a record vector.
        blocks: widths of its parts: (d,), or (d_visual, d_textual) for dual encoders.
        n_records: training records of one epoch, over all ranks.
        n_labels: width of the labels; 0 if there are none.
    """

    width: int
    blocks: tuple[int, ...]
    n_records: int
    n_labels: int

    def batches(
        self, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1, together: bool = False
    ) -> Iterator[RecordBatch]:
        """Endless training batches from step `start_step` on.

        The *global* batch of a step is a function of (seed, step) alone and has `batch_size` records; a rank gets its
        contiguous part of it (`rank_slice`), so that all ranks together see what one process would. With `together`
        samples are shuffled and not records: those of a sample follow each other, for who trains on pairs, and a rank
        gets all of them (`sample_slice`).
        """
        ...

    def held_out(self, batch_size: int) -> Iterator[RecordBatch]:
        """Every held-out record once, in a fixed order, the same for every rank."""
        ...


def rank_slice(batch_size: int, rank: int, world: int) -> slice:
    """The part of a global batch that belongs to a rank: contiguous, sizes differing by one at most."""
    return slice(batch_size * rank // world, batch_size * (rank + 1) // world)


def sample_slice(sample_B: Tensor, rank: int, world: int) -> slice:
    """The part of a global batch that belongs to a rank where samples stay whole.

    It is `rank_slice`, with both ends moved on to where the records of the next sample begin.
    """
    part = rank_slice(len(sample_B), rank, world)
    begins_S = (sample_B.diff() != 0).nonzero()[:, 0] + 1
    ends = torch.tensor([0, *begins_S.tolist(), len(sample_B)])
    start, stop = ends[torch.searchsorted(ends, torch.tensor([part.start, part.stop]))].tolist()
    return slice(start, stop)


def generator(*key: int | str) -> torch.Generator:
    """A CPU random generator that is a function of `key` alone, so that no generator state need ever be saved."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def shuffled(sample_N: Tensor, together: bool, generator: torch.Generator) -> Tensor:
    """A random order [N] of records; with `together` of samples, whose records stay adjacent and in their order."""
    if not together:
        return torch.randperm(len(sample_N), generator=generator)
    samples, of_record_N = sample_N.unique(return_inverse=True)
    return torch.randperm(len(samples), generator=generator)[of_record_N].argsort(stable=True)


class TensorReader:
    """Records held in memory, shuffled anew in every epoch.

    Args:
        acts_ND: [N, d] record vectors.
        modality_N: [N] modality codes; all visual when None.
        sample_N: [N] sample of each record; each record its own sample when None.
        position_N: [N] positions; 0 when None.
        labels_NL: [N, L] multi-hot labels.
        context_NCD: [N, C, d] context vectors of the other modality.
        blocks: widths of the vector's parts; one part when None.
        held_out: share of the *samples* kept out of training, drawn with `split_seed`.

    Raises:
        DataError: lengths or widths disagree, or a side of the split is empty.
    """

    def __init__(
        self,
        acts_ND: Tensor,
        modality_N: Tensor | None = None,
        sample_N: Tensor | None = None,
        position_N: Tensor | None = None,
        labels_NL: Tensor | None = None,
        context_NCD: Tensor | None = None,
        blocks: Sequence[int] | None = None,
        held_out: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        n, self.width = acts_ND.shape
        self.blocks = tuple(blocks) if blocks else (self.width,)
        self.n_labels = 0 if labels_NL is None else labels_NL.shape[1]
        records = RecordBatch(
            acts_ND,
            torch.zeros(n, dtype=torch.int8) if modality_N is None else modality_N.to(torch.int8),
            torch.arange(n) if sample_N is None else sample_N,
            torch.zeros(n, dtype=torch.int64) if position_N is None else position_N,
            context_NCD, labels_NL,
        )
        if sum(self.blocks) != self.width:
            raise DataError(f"blocks {self.blocks} do not add up to the record width {self.width}")
        if wrong := [name for name, value in vars(records).items() if value is not None and len(value) != n]:
            raise DataError(f"{', '.join(wrong)}: not {n} records long, as acts_ND is")
        samples, of_record_N = records.sample_B.unique(return_inverse=True)
        order = torch.randperm(len(samples), generator=generator("held-out", split_seed))
        is_held_out_N = torch.isin(of_record_N, order[: round(len(samples) * held_out)])
        self._train, self._held_out = records[~is_held_out_N], records[is_held_out_N]
        self.n_records = len(self._train)
        if self.n_records == 0 or (held_out > 0 and len(self._held_out) == 0):
            raise DataError(f"{len(samples)} samples cannot be split with a held-out share of {held_out}")

    def batches(
        self, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1, together: bool = False
    ) -> Iterator[RecordBatch]:
        """See `ActivationReader.batches`. A batch may span the end of an epoch; every batch is full."""
        part = slice(0, batch_size) if together else rank_slice(batch_size, rank, world)
        epoch, order_N = -1, torch.empty(0, dtype=torch.int64)
        step = start_step
        while True:
            stop = step * batch_size + part.stop
            at, pieces = step * batch_size + part.start, []
            while at < stop:
                if at // self.n_records != epoch:
                    epoch = at // self.n_records
                    order_N = shuffled(self._train.sample_B, together, generator("epoch", seed, epoch))
                end = min(stop, (epoch + 1) * self.n_records)
                pieces.append(order_N[at - epoch * self.n_records : end - epoch * self.n_records])
                at = end
            batch = self._train[torch.cat(pieces) if pieces else order_N[:0]]
            yield batch[sample_slice(batch.sample_B, rank, world)] if together else batch
            step += 1

    def held_out(self, batch_size: int) -> Iterator[RecordBatch]:
        """See `ActivationReader.held_out`."""
        for start in range(0, len(self._held_out), batch_size):
            yield self._held_out[start : start + batch_size]
