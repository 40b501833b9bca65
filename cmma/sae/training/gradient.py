"""The gradient of one step: in full or half precision, compiled or not, of a batch at once or in parts."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cmma.errors import ConfigError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.config import PENALISED, OptimConfig
from cmma.sae.objective.objective import BatchSums, Losses
from cmma.sae.records import RecordBatch
from cmma.sae.training.dead import auxk_error

if TYPE_CHECKING:
    from cmma.sae.training.trainer import Trainer


class Forward(NamedTuple):
    """What a forward pass leaves of a batch, or of a part of it."""

    sums: BatchSums
    """Of this process's records."""
    terms: dict[str, Tensor]
    """The architecture's own terms, weighted and summed over the records."""
    auxiliary: Tensor
    """The weighted error of the dead latents, summed over the records."""
    residual_BD: Tensor
    """h − ĥ, detached."""


def check_settings(sae: SparseAutoencoder, config: OptimConfig) -> None:
    """Refuse what an architecture or this machine cannot do.

    Raises:
        ConfigError: parts of a batch for an architecture that needs the whole; nothing that can be compiled, or no
            compiler.
    """
    arch = sae.config.arch
    if config.accumulate > 1 and (sae.whole_batch or sae.reads_pairs):
        raise ConfigError(f"sae.arch={arch} has to see a whole batch at once; set optim.accumulate=1")
    if config.compile and arch not in PENALISED:
        raise ConfigError(f"optim.compile=true compiles the dense training passes of {', '.join(PENALISED)}, not that "
                          f"of sae.arch={arch}; set optim.compile=false")
    if config.compile and sae.mesh.tp > 1:
        raise ConfigError("optim.compile=true compiles no exchange between processes; set it to false, or launch.tp=1")
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError("optim.compile=true needs a C++ compiler, and there is none on the PATH; install g++ or set "
                          "optim.compile=false")


def differentiate(trainer: Trainer, batch: RecordBatch, dead_I: Tensor) -> tuple[Losses, Forward]:
    """Add the gradient of a batch to the parameters' and move the objective's statistics one step.

    In parts (`optim.accumulate`) it is the same gradient to rounding. R_cross and R_align are functions of sums over
    the whole batch and the past ones: a first pass without gradients finds the sums, with which the moving statistics
    do their one step, and the slope of the loss along each; then each part's gradient is that of its own sums times
    these slopes. Without the two terms the loss is a sum over records, and one pass does.
    """
    objective, n_records = trainer.objective, trainer.config.batch
    if trainer.config.accumulate == 1:
        done = forward(trainer, batch, dead_I)
        losses = objective.losses(done.sums)
        (losses.total + _additive(done) / n_records).backward()
        return losses, done

    size = max(1, -(-len(batch) // trainer.config.accumulate))
    parts = [batch[start : start + size] for start in range(0, len(batch), size)] or [batch]
    slopes: BatchSums | None = None
    if objective.couples_records:
        with torch.no_grad():
            whole = _together([forward(trainer, part, dead_I) for part in parts])
        losses, slopes = objective.slopes(whole.sums)
    done_parts = []
    for part in parts:
        done = forward(trainer, part, dead_I)
        total = objective.additive(done.sums) / n_records if slopes is None else sum(
            (value * slope).sum() for value, slope in zip(done.sums, slopes, strict=True))
        (total + _additive(done) / n_records).backward()
        done_parts.append(_detached(done))
    whole = _together(done_parts)
    if slopes is None:
        losses = objective.losses(whole.sums)
    return losses, whole


def forward(trainer: Trainer, batch: RecordBatch, dead_I: Tensor) -> Forward:
    """Everything of a batch that is differentiated; matrix products in the configured precision."""
    sae, config = trainer.sae, trainer.sae.config
    with torch.no_grad():
        h_BD = sae.standardiser.standardise(batch.acts_BD, batch.modality_B)
        context_BCD = sae.standardise_context(batch.context_BCD, batch.modality_B)
    low = trainer.config.precision == "bfloat16"
    with torch.autocast(h_BD.device.type, torch.bfloat16, enabled=low):
        done = trainer.training_pass(h_BD, context_BCD, batch)
    reconstruction_BD = done.reconstruction_BD.to(h_BD.dtype)
    sums = trainer.objective.sums(
        h_BD, reconstruction_BD, done.latents, batch.modality_B, batch.labels_BL, done.sparsity_B)
    residual_BD, auxiliary = (h_BD - reconstruction_BD).detach(), h_BD.new_zeros(())
    if config.revival == "auxk" and trainer.mesh.total("tp", len(dead_I)):
        with torch.autocast(h_BD.device.type, torch.bfloat16, enabled=low):
            auxiliary = config.lambda_aux * auxk_error(
                sae, h_BD, context_BCD, residual_BD, dead_I, config.aux_k, batch.modality_B)
    return Forward(sums, dict(done.terms), auxiliary, residual_BD)


def _additive(done: Forward) -> Tensor:
    return done.auxiliary + sum(done.terms.values())


def _detached(done: Forward) -> Forward:
    return Forward(BatchSums(*(value.detach() for value in done.sums)),
                   {name: value.detach() for name, value in done.terms.items()}, done.auxiliary.detach(),
                   done.residual_BD)


def _together(parts: list[Forward]) -> Forward:
    """What the whole batch leaves, from what its parts do."""
    sums, terms, auxiliary, residual_BD = zip(*parts, strict=True)
    return Forward(
        BatchSums(*(torch.stack(values).sum(0) for values in zip(*sums, strict=True))),
        {name: sum(part[name] for part in terms) for name in terms[0]}, sum(auxiliary), torch.cat(residual_BD))
