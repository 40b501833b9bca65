"""One optimiser step on a dictionary, and the whole state of a training run (paper, section 3.1.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cmma.errors import ArtifactError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.config import OptimConfig
from cmma.sae.objective.objective import Losses, Objective
from cmma.sae.records import RecordBatch, generator
from cmma.sae.training.dead import DeadLatents, resample
from cmma.sae.training.gradient import check_settings, differentiate
from cmma.sae.training.parallel import latent_names


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """Linear warm-up to `config.lr`, then a cosine to 0 at `total_steps`. `step` counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, total_steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Trainer:
    """One dictionary in training: takes batches, does steps, gives and takes back its whole state.

    Args:
        sae: trained in place; its device decides where the work is done, its mesh by whom (`spread`).
        config: the optimiser's settings.
        n_records: training records in one epoch. n_labels: width of the labels, 0 if there are none.
        seed: of the resampling draws.
    """

    def __init__(
        self, sae: SparseAutoencoder, config: OptimConfig, n_records: int, n_labels: int = 0, seed: int = 0,
    ) -> None:
        self.sae, self.mesh, self.config, self.seed = sae, sae.mesh, config, seed
        check_settings(sae, config)
        self.training_pass = torch.compile(sae.training_pass) if config.compile else sae.training_pass
        self.total_steps = config.total_steps(n_records)
        self.objective = Objective(sae.config, n_labels, self.mesh).to(sae.W_enc.device)
        self.dead = DeadLatents(sae.n_latents, config.dead_after).to(sae.W_enc.device)
        self.parameters = dict(sae.named_parameters())
        self.of_latents = latent_names(sae)
        self.optimiser = torch.optim.Adam(
            self.parameters.values(), lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
        self.step = 0
        self.best_fvu, self.evaluations_without_gain = math.inf, 0

    def advance(self, batch: RecordBatch) -> Losses:
        """One optimiser step on this process's part of a global batch. Raises DataError when the loss is not finite."""
        dead_I = self.dead.indices()
        losses, done = differentiate(self, batch, dead_I)
        losses.terms.update(self._means(done.terms))
        self._update()
        self.dead.update(losses.activation_K > 0, self.config.batch)
        self.step += 1
        if self.sae.config.revival == "resample" and self._resamples_now():
            self._resample(done.residual_BD)
        return losses

    def _means(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The architecture's own terms over the global batch, detached."""
        totals = {name: value.detach().clone() for name, value in terms.items()}
        self.mesh.sum_(totals.values(), "dp")
        return {name: value / self.config.batch for name, value in totals.items()}

    def _update(self) -> None:
        """Sum gradients over processes, project, clip, Adam, project."""
        with_gradient = {name: it.grad for name, it in self.parameters.items() if it.grad is not None}
        common = [gradient for name, gradient in with_gradient.items() if name not in self.of_latents]
        self.mesh.sum_(with_gradient.values(), "dp")
        self.mesh.sum_(common, "tp")
        self.sae.remove_parallel_gradient()
        if self.config.clip:
            norm = self.mesh.norm(list(with_gradient.values()), common)
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.clip, norm)
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
        if self.mesh.total("tp", len(dead_I)):
            draw = generator("resample", self.seed, self.step)
            n = resample(self.sae, self.optimiser, residual_BD, dead_I, draw)
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

    def latent_axes(self) -> dict[str, int]:
        """Which axis of a tensor of `tensors` runs over the latents, for those that have one."""
        axes = {"objective.moving.activation_MK": 1, "objective.moving.joint_LK": 1, "dead.silent_K": 0}
        for name in self.of_latents:
            axes |= dict.fromkeys((f"sae.{name}", f"adam.{name}.exp_avg", f"adam.{name}.exp_avg_sq"), 0)
        return axes

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


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
