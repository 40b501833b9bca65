"""One dictionary in training: steps and logs, early stopping, checkpoints and resumption (paper, section 3.1.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.config import OptimConfig
from cmma.sae.objective.objective import Losses
from cmma.sae.records import ActivationReader, RecordBatch
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


class Run:
    """One dictionary in training, resumed from its checkpoint if there is one; `train_together` feeds it.

    Args:
        sae: from `build_sae`, trained in place; on a resumed run its weights are overwritten. Its mesh says over which
            processes (`cmma.sae.training.parallel.spread`).
        reader: the records.
        config: optimiser, schedule, stopping.
        checkpoint: folder of the checkpoints, shared by all processes.
        log: called on rank 0 with plain numbers and a `step`. A resumed run logs the steps since its checkpoint again.
        seed: of the resampling draws.

    Attributes:
        finished: nothing is left to do.
        failure: why it cannot go on; None if it can.
        note: its last logged metrics in a few words.

    Raises:
        ArtifactError: a damaged or foreign checkpoint.
    """

    def __init__(
        self, sae: SparseAutoencoder, reader: ActivationReader, config: OptimConfig, checkpoint: Path,
        log: Log = lambda metrics: None, seed: int = 0,
    ) -> None:
        self.sae, self.reader, self.config, self.mesh = sae, reader, config, sae.mesh
        self.trainer = Trainer(sae, config, reader.n_records, reader.n_labels, seed)
        self._checkpoint, self._log = checkpoint, log if self.mesh.rank == 0 else lambda metrics: None
        self.finished, self.stopped_early, self.note = False, False, ""
        self.failure: DataError | None = None
        if self.mesh.rank == 0:
            clean(checkpoint)
        found = load_checkpoint(checkpoint, str(self.device), self.trainer.latent_axes(), self.mesh)
        if found:
            self.trainer.restore(*found)
            self.finished, self.stopped_early = found[1]["finished"], found[1]["stopped_early"]
        self.mesh.barrier()  # nobody may write before all have read
        self._logged_at = self.step, time.perf_counter()

    @property
    def stream(self) -> tuple[int, int, bool]:
        """What decides its batches: their size, the order of the records, whether samples stay together."""
        return self.config.batch, self.config.order_seed, self.sae.reads_pairs

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.sae.W_enc.device

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.trainer.step

    @property
    def is_last(self) -> bool:
        """The last step is done."""
        return self.step == self.trainer.total_steps

    @property
    def going(self) -> bool:
        """Wants more batches."""
        return not (self.finished or self.failure)

    @property
    def due(self) -> bool:
        """Wants to be measured on held-out records after this step."""
        return self.going and (self.step % self.config.evaluate_every == 0 or self.is_last)

    @property
    def result(self) -> TrainResult:
        """How it ended."""
        epochs = self.step * self.config.batch / self.reader.n_records
        return TrainResult(self.step, epochs, self.stopped_early, self.trainer.best_fvu)

    def advance(self, batch: RecordBatch) -> None:
        """Do one step. A loss that is not finite becomes `failure`."""
        losses = self.trainer.advance(batch)
        if self.step % self.config.log_every == 0 or self.is_last:
            metrics = self._step_metrics(losses)
            if not all(math.isfinite(metrics[name]) for name in losses.terms):
                self.failure = DataError(f"the loss is not finite at step {self.step}: lower optim.lr, or look for "
                                         "broken records with `cmma verify`")
                return
            self._log(metrics)
            self.note = (f"error {metrics['squared_error']:.3g}  L0 {metrics['l0_visual']:.0f} visual "
                         f"{metrics['l0_textual']:.0f} textual")

    def take_measures(self, held_out: Mapping[str, float]) -> None:
        """Log held-out metrics and decide whether to stop early."""
        self._log({"step": self.step, **{f"held_out/{name}": value for name, value in held_out.items()}})
        self.stopped_early = self.trainer.note_evaluation(held_out["fvu"]) and not self.is_last

    def close_step(self) -> None:
        """After a step and its measures: finish, or write a checkpoint when it is time."""
        if self.failure:
            return
        if self.is_last or self.stopped_early:
            self.sae.conclude(self.reader, self.config.batch, self.config.order_seed)
            self.finished = True
            self._save()
        elif self.step % self.config.checkpoint_every == 0:
            self._save()

    def _save(self) -> None:
        state = self.trainer.state() | {"finished": self.finished, "stopped_early": self.stopped_early}
        save_checkpoint(
            self._checkpoint, self.step, self.trainer.tensors(), state, self.trainer.latent_axes(), self.mesh)

    def _step_metrics(self, losses: Losses) -> dict[str, Any]:
        (logged_step, logged_time), now = self._logged_at, time.perf_counter()
        self._logged_at = self.step, now
        metrics: dict[str, Any] = {
            "step": self.step, "epoch": self.step * self.config.batch / self.reader.n_records,
            "lr": learning_rate(self.step - 1, self.trainer.total_steps, self.config),
            **{name: float(value) for name, value in losses.terms.items()},
            "dead": self.mesh.total("tp", len(self.trainer.dead.indices())),
            "records_per_second": (self.step - logged_step) * self.config.batch / (now - logged_time),
        }
        for m in (Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT):
            metrics[f"l0_{m.name.lower()}"] = float(losses.l0_M[m])
            metrics[f"lambda1_{m.name.lower()}"] = float(self.trainer.objective.lambda1_M[m])
        return metrics
