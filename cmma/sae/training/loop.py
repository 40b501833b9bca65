"""The training loop: one pass over the records for one dictionary, or for many (paper, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cmma.console import progress
from cmma.errors import ConfigError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.config import OptimConfig
from cmma.sae.metrics import measure_together
from cmma.sae.records import ActivationReader
from cmma.sae.training.run import Log, Run, TrainResult


def train(
    sae: SparseAutoencoder, reader: ActivationReader, config: OptimConfig, checkpoint: Path,
    log: Log = lambda metrics: None, seed: int = 0,
) -> TrainResult:
    """Train `sae` in place, resuming from `checkpoint` if it holds an unfinished run.

    A run killed at any instant and started again ends in the same weights, bit for bit on CPU with the same number of
    threads. Over several processes (`spread`) it ends within rounding of one, and may go on over other ones.

    Args: see `Run`.

    Raises:
        DataError: activations or loss are not finite. ArtifactError: as `Run`.
    """
    run = Run(sae, reader, config, checkpoint, log, seed)
    train_together([run])
    if run.failure:
        raise run.failure
    return run.result


def train_together(runs: Sequence[Run]) -> None:
    """Bring several dictionaries to their ends on one pass over the records: every batch is read once for all.

    Each ends in the same weights as alone, bit for bit on CPU with the same number of threads. The stream starts where
    the least advanced one is; who is ahead waits for it. One that stops early, or fails, drops out.

    Args:
        runs: of one reader and one mesh, with the same batch size, order of the records and need for pairs.

    Raises:
        ConfigError: the runs need different batches.
    """
    if len({run.stream for run in runs}) > 1:
        raise ConfigError("dictionaries that train together need one optim.batch and optim.order_seed, and all or "
                          "none of them pairs of records")
    reader, mesh, (batch_size, order_seed, together) = runs[0].reader, runs[0].sae.mesh, runs[0].stream
    going = [run for run in runs if run.going]
    step = min((run.step for run in going), default=0)
    last = max((run.trainer.total_steps for run in going), default=0)
    stream = reader.batches(batch_size, order_seed, step, mesh.dp_rank, mesh.dp, together)
    label = "Training the dictionary" if len(runs) == 1 else f"Training {len(runs)} dictionaries"
    with progress(label, last, done=step) as bar:
        while going:
            batch = next(stream).to(runs[0].device)
            step += 1
            stepping = [run for run in going if run.step < step]
            for run in stepping:
                run.advance(batch)
            due = [run for run in stepping if run.due]
            held_out = held_out_metrics([run.sae for run in due], reader, batch_size)
            for run, metrics in zip(due, held_out, strict=True):
                run.take_measures(metrics)
            for run in stepping:
                run.close_step()
            going = [run for run in going if run.going]
            bar.advance()
            bar.note(runs[0].note if len(runs) == 1 else f"{len(going)} of them go on")
    mesh.barrier()


def held_out_metrics(
    saes: Sequence[SparseAutoencoder], reader: ActivationReader, batch_size: int
) -> list[dict[str, float]]:
    """`SAEMetrics.summary` of each over the held-out records, read once, each dp rank its share of the batches."""
    if not saes:
        return []
    mesh = saes[0].mesh
    batches = reader.held_out(max(1, batch_size // mesh.tp))  # all latents of these take no more than a step's own
    measured = measure_together(saes, islice(batches, mesh.dp_rank, None, mesh.dp))
    for metrics in measured:
        mesh.sum_(metrics.buffers(), "dp")
    return [metrics.summary() for metrics in measured]
