"""Training a dictionary on activation records (paper, section 3.1.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmma.console import progress
from cmma.errors import ArtifactError, ConfigError, DataError
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.config import OptimConfig
from cmma.sae.metrics import SAEMetrics, measure
from cmma.sae.objective.objective import Losses, Objective
from cmma.sae.records import ActivationReader, RecordBatch, generator
from cmma.sae.training.checkpoint import clean, load_checkpoint, save_checkpoint
from cmma.sae.training.dead import DeadLatents, auxk_error, resample
from cmma.sae.training.parallel import Ranks

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


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """Linear warm-up to `config.lr`, then a cosine to 0 at `total_steps`. `step` counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, total_steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Trainer:
    """One dictionary in training: takes batches, does steps, gives and takes back its whole state.

    Args:
        sae: trained in place; its device decides where the work is done.
        config: the optimiser's settings.
        n_records: training records in one epoch. n_labels: width of the labels, 0 if there are none.
        seed: of the resampling draws.
        ranks: over which ranks each batch is spread.
    """

    def __init__(
        self, sae: SparseAutoencoder, config: OptimConfig, n_records: int, n_labels: int = 0, seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        self.sae, self.config, self.seed = sae, config, seed
        self.ranks = ranks or Ranks()
        if self.ranks.world > 1 and (sae.whole_batch or sae.reads_pairs):
            raise ConfigError(f"sae.arch={sae.config.arch} has to see a whole batch in one process; train it with "
                              "launch=local")
        self.total_steps = config.total_steps(n_records)
        self.objective = Objective(sae.config, n_labels, self.ranks).to(sae.W_enc.device)
        self.dead = DeadLatents(sae.n_latents, config.dead_after).to(sae.W_enc.device)
        self.parameters = dict(sae.named_parameters())
        self.optimiser = torch.optim.Adam(
            self.parameters.values(), lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
        self.step = 0
        self.best_fvu, self.evaluations_without_gain = math.inf, 0

    def advance(self, batch: RecordBatch) -> Losses:
        """One optimiser step on this rank's part of a global batch. Raises DataError when the loss is not finite."""
        sae = self.sae
        with torch.no_grad():
            h_BD = sae.standardiser.standardise(batch.acts_BD, batch.modality_B)
            context_BCD = sae.standardise_context(batch.context_BCD, batch.modality_B)
        done = sae.training_pass(h_BD, context_BCD, batch)
        losses = self.objective(
            h_BD, done.reconstruction_BD, done.latents_BK, batch.modality_B, batch.labels_BL, done.sparsity_B)
        total = losses.total + sum(done.terms.values()) / self.config.batch
        losses.terms.update(self._means(done.terms))
        residual_BD = (h_BD - done.reconstruction_BD).detach()
        revival, dead_I = sae.config.revival, self.dead.indices()
        if revival == "auxk" and len(dead_I):
            error = auxk_error(sae, h_BD, context_BCD, residual_BD, dead_I, sae.config.aux_k, batch.modality_B)
            total = total + sae.config.lambda_aux * error / self.config.batch
        total.backward()
        self._update()
        self.dead.update(losses.activation_K > 0, self.config.batch)
        self.step += 1
        if revival == "resample" and self._resamples_now():
            self._resample(residual_BD)
        return losses

    def _means(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The architecture's own terms over the global batch, detached."""
        totals = {name: value.detach().clone() for name, value in terms.items()}
        self.ranks.sum_(totals.values())
        return {name: value / self.config.batch for name, value in totals.items()}

    def _update(self) -> None:
        """Sum gradients over ranks, project, clip, Adam, project."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        self.ranks.sum_(gradients)
        self.sae.remove_parallel_gradient()
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.total_steps, self.config)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.sae.project()

    def _resamples_now(self) -> bool:
        return self.step % self.config.resample_every == 0 and self.step <= (
            self.config.resample_until * self.total_steps)

    def _resample(self, residual_BD: Tensor) -> None:
        dead_I = self.dead.indices()
        if len(dead_I):
            draw = generator("resample", self.seed, self.step)
            n = resample(self.sae, self.optimiser, residual_BD, dead_I, self.config.batch, draw, self.ranks)
            self.dead.silent_K[dead_I[:n]] = 0

    def note_evaluation(self, fvu: float) -> bool:
        """Record a held-out FVU; True when patience has run out."""
        if fvu < self.best_fvu:
            self.best_fvu, self.evaluations_without_gain = fvu, 0
        else:
            self.evaluations_without_gain += 1
        return 0 < self.config.patience <= self.evaluations_without_gain

    def tensors(self) -> dict[str, Tensor]:
        """Weights, Adam moments, moving sums, adaptive λ1 and silence counts, by name."""
        named = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        named |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        named |= {f"dead.{name}": value for name, value in self.dead.state_dict().items()}
        for name, parameter in self.parameters.items():
            named |= {f"adam.{name}.{key}": value for key, value in self.optimiser.state[parameter].items()}
        return named

    def state(self) -> dict[str, Any]:
        """Everything else that a resumed run needs, and what it checks."""
        best = self.best_fvu if math.isfinite(self.best_fvu) else None
        return {
            "sae": asdict(self.sae.config), "optim": asdict(self.config), "seed": self.seed,
            "total_steps": self.total_steps, "best_fvu": best,
            "evaluations_without_gain": self.evaluations_without_gain,
        }

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take over a checkpoint. Raises ArtifactError when it is another run's."""
        for key in ("sae", "optim", "seed", "total_steps"):
            if state[key] != self.state()[key]:
                raise ArtifactError(f"the checkpoint at step {state['step']} was made with another `{key}`; remove the "
                                    "checkpoint folder to train from the start")
        for prefix, module in (("sae.", self.sae), ("objective.", self.objective), ("dead.", self.dead)):
            module.load_state_dict(_below(tensors, prefix))
        for name, parameter in self.parameters.items():
            self.optimiser.state[parameter] = _below(tensors, f"adam.{name}.")
        self.step = state["step"]
        self.best_fvu = math.inf if state["best_fvu"] is None else state["best_fvu"]
        self.evaluations_without_gain = state["evaluations_without_gain"]


def train(
    sae: SparseAutoencoder, reader: ActivationReader, config: OptimConfig, checkpoint: Path,
    log: Log = lambda metrics: None, seed: int = 0, rank: int = 0, world: int = 1,
) -> TrainResult:
    """Train `sae` in place, resuming from `checkpoint` if it holds an unfinished run.

    A run killed at any instant and started again ends in the same weights, bit for bit on CPU with the same number of
    threads. Over several ranks (an initialised process group) it ends within rounding of one process.

    Args:
        sae: from `build_sae`; on a resumed run its weights are overwritten.
        reader: the records.
        config: optimiser, schedule, stopping.
        checkpoint: folder of the checkpoints, shared by all ranks; rank 0 writes.
        log: called on rank 0 with plain numbers and a `step`. A resumed run logs the steps since its checkpoint again.
        seed: of the order of the records and of resampling.
        rank, world: this process among those that share each batch.

    Raises:
        DataError: activations or loss are not finite. ArtifactError: a damaged or foreign checkpoint. ConfigError:
            several ranks for an architecture whose batch cannot be spread.
    """
    ranks = Ranks(rank, world)
    trainer = Trainer(sae, config, reader.n_records, reader.n_labels, seed, ranks)
    if rank == 0:
        clean(checkpoint)
    finished, stopped_early = False, False
    found = load_checkpoint(checkpoint, device=str(sae.W_enc.device))
    if found:
        trainer.restore(*found)
        finished, stopped_early = found[1]["finished"], found[1]["stopped_early"]
    ranks.barrier()  # nobody may write before all have read

    def save() -> None:
        if rank == 0:
            save_checkpoint(checkpoint, trainer.step, trainer.tensors(),
                            trainer.state() | {"finished": finished, "stopped_early": stopped_early})

    stream = reader.batches(config.batch, seed, trainer.step, rank, world, together=sae.reads_pairs)
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
                if rank == 0:
                    log(metrics)
            if trainer.step % config.evaluate_every == 0 or last:
                held_out = held_out_metrics(sae, reader, config.batch, ranks)
                if rank == 0:
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
    ranks.barrier()
    return TrainResult(trainer.step, trainer.step * config.batch / reader.n_records, stopped_early, trainer.best_fvu)


def held_out_metrics(
    sae: SparseAutoencoder, reader: ActivationReader, batch_size: int, ranks: Ranks
) -> dict[str, float]:
    """`SAEMetrics.summary` over the held-out records; each rank measures its share of the batches."""
    metrics: SAEMetrics = measure(sae, islice(reader.held_out(batch_size), ranks.rank, None, ranks.world))
    ranks.sum_(metrics.buffers())
    return metrics.summary()


def _step_metrics(trainer: Trainer, losses: Losses, n_records: int) -> dict[str, Any]:
    terms = {name: float(value) for name, value in losses.terms.items()}
    if not all(math.isfinite(value) for value in terms.values()):
        raise DataError(f"the loss is not finite at step {trainer.step}: lower optim.lr, or look for broken records "
                        "with `cmma verify`")
    metrics: dict[str, Any] = {
        "step": trainer.step, "epoch": trainer.step * trainer.config.batch / n_records,
        "lr": learning_rate(trainer.step - 1, trainer.total_steps, trainer.config), **terms,
        "dead": len(trainer.dead.indices()),
    }
    for m in (Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT):
        metrics[f"l0_{m.name.lower()}"] = float(losses.l0_M[m])
        metrics[f"lambda1_{m.name.lower()}"] = float(trainer.objective.lambda1_M[m])
    return metrics


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
