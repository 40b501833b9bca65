"""The training loop: steps, logs, evaluations, checkpoints and resumption (paper, section 3.1.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cmma.console import progress
from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.config import OptimConfig
from cmma.sae.metrics import SAEMetrics, measure
from cmma.sae.objective.objective import Losses
from cmma.sae.records import ActivationReader
from cmma.sae.training.checkpoint import clean, load_checkpoint, save_checkpoint
from cmma.sae.training.trainer import Trainer, learning_rate

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended."""

    steps: int
    """Optimiser steps done."""
    epochs: float
    """Passes over the training records."""
    stopped_early: bool
    """True when patience ran out before the last step."""
    best_fvu: float
    """Lowest held-out FVU at any evaluation. The weights kept are the last: those of the lowest FVU would be the
    least sparse ones."""


def train(
    sae: SparseAutoencoder, reader: ActivationReader, config: OptimConfig, checkpoint: Path,
    log: Log = lambda metrics: None, seed: int = 0,
) -> TrainResult:
    """Train `sae` in place, resuming from `checkpoint` if it holds an unfinished run.

    A run killed at any instant and started again ends in the same weights, bit for bit on CPU with the same number of
    threads. Over several processes (`spread`) it ends within rounding of one, and may go on over other ones.

    Args:
        sae: from `build_sae`; on a resumed run its weights are overwritten.
        reader: the records.
        config: optimiser, schedule, stopping.
        checkpoint: folder of the checkpoints, shared by all processes.
        log: called on rank 0 with plain numbers and a `step`. A resumed run logs the steps since its checkpoint again.
        seed: of the order of the records and of resampling.

    Raises:
        DataError: activations or loss are not finite. ArtifactError: a damaged or foreign checkpoint.
    """
    mesh = sae.mesh
    trainer = Trainer(sae, config, reader.n_records, reader.n_labels, seed)
    if mesh.rank == 0:
        clean(checkpoint)
    finished, stopped_early = False, False
    found = load_checkpoint(checkpoint, str(sae.W_enc.device), trainer.latent_axes(), mesh)
    if found:
        trainer.restore(*found)
        finished, stopped_early = found[1]["finished"], found[1]["stopped_early"]
    mesh.barrier()  # nobody may write before all have read

    def save() -> None:
        state = trainer.state() | {"finished": finished, "stopped_early": stopped_early}
        save_checkpoint(checkpoint, trainer.step, trainer.tensors(), state, trainer.latent_axes(), mesh)

    stream = reader.batches(config.batch, seed, trainer.step, mesh.dp_rank, mesh.dp, together=sae.reads_pairs)
    batches = islice(stream, trainer.total_steps - trainer.step)
    started, start_step = time.perf_counter(), trainer.step
    with progress("Training the dictionary", trainer.total_steps, done=trainer.step) as bar:
        for batch in () if finished else batches:
            losses = trainer.advance(batch.to(sae.W_enc.device))
            bar.advance()
            last = trainer.step == trainer.total_steps
            if trainer.step % config.log_every == 0 or last:
                rate = (trainer.step - start_step) * config.batch / (time.perf_counter() - started)
                metrics = _step_metrics(trainer, losses, reader.n_records) | {"records_per_second": rate}
                bar.note(f"error {metrics['squared_error']:.3g}  L0 {metrics['l0_visual']:.0f} visual "
                         f"{metrics['l0_textual']:.0f} textual")
                if mesh.rank == 0:
                    log(metrics)
            if trainer.step % config.evaluate_every == 0 or last:
                held_out = held_out_metrics(sae, reader, config.batch)
                if mesh.rank == 0:
                    log({"step": trainer.step, **{f"held_out/{name}": value for name, value in held_out.items()}})
                stopped_early = trainer.note_evaluation(held_out["fvu"]) and not last
            if stopped_early:
                break
            if trainer.step % config.checkpoint_every == 0 and not last:
                save()
    if not finished:
        sae.conclude(reader, config.batch, seed)
        finished = True
        save()
    mesh.barrier()
    return TrainResult(trainer.step, trainer.step * config.batch / reader.n_records, stopped_early, trainer.best_fvu)


def held_out_metrics(sae: SparseAutoencoder, reader: ActivationReader, batch_size: int) -> dict[str, float]:
    """`SAEMetrics.summary` over the held-out records; the processes measure their shares of the batches."""
    mesh = sae.mesh
    batches = reader.held_out(max(1, batch_size // mesh.tp))  # all latents of as many records take a step's memory
    metrics: SAEMetrics = measure(sae, islice(batches, mesh.dp_rank, None, mesh.dp))
    mesh.sum_(metrics.buffers(), "dp")
    return metrics.summary()


def _step_metrics(trainer: Trainer, losses: Losses, n_records: int) -> dict[str, Any]:
    terms = {name: float(value) for name, value in losses.terms.items()}
    if not all(math.isfinite(value) for value in terms.values()):
        raise DataError(f"the loss is not finite at step {trainer.step}: lower optim.lr, or look for broken records "
                        "with `cmma verify`")
    metrics: dict[str, Any] = {
        "step": trainer.step, "epoch": trainer.step * trainer.config.batch / n_records,
        "lr": learning_rate(trainer.step - 1, trainer.total_steps, trainer.config), **terms,
        "dead": trainer.mesh.total("tp", len(trainer.dead.indices())),
    }
    for m in (Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT):
        metrics[f"l0_{m.name.lower()}"] = float(losses.l0_M[m])
        metrics[f"lambda1_{m.name.lower()}"] = float(trainer.objective.lambda1_M[m])
    return metrics
