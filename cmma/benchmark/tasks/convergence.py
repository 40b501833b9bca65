"""Task `convergence`: the paper's theoretical claim, put to the test on planted activations.

"The objective converges to a stationary point, and the learned features satisfy modality specialization with
probability at least 1 − δ, where δ decreases exponentially with the number of training samples."
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import OptimizeWarning, curve_fit

from cmma.benchmark.codes import encode_tokens, latent_classes
from cmma.benchmark.methods.autoencoders import SAEMethod
from cmma.benchmark.protocols import Dictionary, DictionaryMethod
from cmma.benchmark.recovery import RECALL_AT, match
from cmma.benchmark.task import Metric, Task
from cmma.benchmark.tasks.planted import PlantedTask, PlantedWorld
from cmma.sae.records import RecordBatch
from cmma.sae.training.trainer import Trainer
from cmma.testbed.planted.activations import plant
from cmma.testbed.planted.config import CLASSES

_SHARES = (32, 16, 8, 4, 2, 1)
"""The training set is divided by these."""
_PROBE = 2048  # records of the gradient


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a method found from each training set, smallest first, and the gradient's norm on the way (largest set)."""

    dictionaries: tuple[Dictionary, ...]
    gradient_first: float
    gradient_last: float


class ConvergenceTask(Task):
    """See `docs/testbed_tasks.md`."""

    protocol = "dictionary"
    title = "Does the objective become stationary, and does mis-specialisation fall exponentially with the samples?"
    default_methods = ("msae", "standard")
    controls = ("untrained",)
    metrics: ClassVar = {
        **{f"delta_{share}": Metric(f"atoms not recovered with their class from 1/{share} of the samples",
                                    better="down") for share in _SHARES},
        "exponential_r2": Metric("R² of δ = A exp(−n / n₀)", better="", needs_truth=False),
        "power_r2": Metric("R² of δ = A n^−b", better="", needs_truth=False),
        "gradient_ratio": Metric("norm of the objective's gradient, last over first step", better="down",
                                 needs_truth=False, digits=4),
    }

    def world(self, seed: int) -> PlantedWorld:
        """The world of the task `planted`."""
        return PlantedTask(self.config, self.spec).world(seed)

    def run(self, method: DictionaryMethod, world: PlantedWorld, seed: int) -> Learnt:
        """Fit to ever larger shares of the training samples, with equally many steps."""
        n_train = PlantedTask(self.config, self.spec).n_train
        config = world.test.config
        found = []
        for share in _SHARES:
            reader = plant(config, "train", 0, max(40, n_train // share)).reader()
            found.append(method.fit(reader, world.budget, seed))
        first, last = _gradients(method, world, seed) if isinstance(method, SAEMethod) else (np.nan, np.nan)
        return Learnt(tuple(found), first, last)

    def score(self, found: Learnt, world: PlantedWorld) -> dict[str, float]:
        """δ for each share, and which law it follows better."""
        delta_S = np.array([_delta(dictionary, world) for dictionary in found.dictionaries])
        samples_S = 1 / np.array(_SHARES)
        return {
            **{f"delta_{share}": float(delta) for share, delta in zip(_SHARES, delta_S, strict=True)},
            "exponential_r2": r_squared(lambda n, a, b: a * np.exp(-b * n), samples_S, delta_S),
            "power_r2": r_squared(lambda n, a, b: a * n**-b, samples_S, delta_S),
            "gradient_ratio": found.gradient_last / found.gradient_first,
        }

    def shuffle(self, world: PlantedWorld, seed: int) -> PlantedWorld:
        """As in the task `planted`: atoms of another world and permuted classes."""
        return PlantedTask(self.config, self.spec).shuffle(world, seed)

    def chance(self, world: PlantedWorld) -> dict[str, float]:
        """A random direction is next to no atom: δ = 1."""
        return {f"delta_{share}": 1.0 for share in _SHARES}


def _delta(found: Dictionary, world: PlantedWorld) -> float:
    """Share of the atoms (once per modality that has them) without a matched latent, or with one of another class."""
    codes = encode_tokens(found, torch.from_numpy(world.test.acts_NMW), in_context=True)
    matching = match(found.decoder_MKW.numpy(), world.targets)
    modality, atom = np.nonzero(matching.matched_MA >= RECALL_AT)
    class_K = latent_classes(codes).free_K
    right = class_K[matching.latent_MA[modality, atom]] == np.array(CLASSES)[world.class_A[atom]]
    return 1 - float(right.sum()) / float(world.targets.present_MA.sum())


def r_squared(law: Callable[..., np.ndarray], x_S: np.ndarray, y_S: np.ndarray) -> float:
    """R² of the least-squares fit of a law with two parameters; NaN where it cannot be fitted or y is constant."""
    if np.ptp(y_S) == 0:
        return float("nan")
    try:
        parameters, _ = curve_fit(law, x_S, y_S, p0=(float(y_S.max()), 1.0), maxfev=10_000)
    except (RuntimeError, OptimizeWarning):
        return float("nan")
    return float(1 - np.square(y_S - law(x_S, *parameters)).sum() / np.square(y_S - y_S.mean()).sum())


def _gradients(method: SAEMethod, world: PlantedWorld, seed: int) -> tuple[float, float]:
    """Norm of the whole objective's gradient on the same records, before the first and after the last step."""
    probe = next(world.reader.batches(min(_PROBE, world.reader.n_records), seed + 1))
    steps = method.steps(world.reader, world.budget, seed)
    trainer = next(steps)
    first = gradient_norm(trainer, probe)
    for _ in steps:  # it is the same trainer, a step further each time
        pass
    return first, gradient_norm(trainer, probe)


def gradient_norm(trainer: Trainer, batch: RecordBatch) -> float:
    """‖∇‖ of the objective at the trainer's weights, along the manifold of unit-norm features; changes nothing."""
    sae, objective = copy.deepcopy((trainer.sae, trainer.objective))  # both keep moving statistics
    h_BD = sae.standardiser.standardise(batch.acts_BD, batch.modality_B)
    done = sae.training_pass(h_BD, sae.standardise_context(batch.context_BCD, batch.modality_B), batch)
    losses = objective(h_BD, done.reconstruction_BD, done.latents, batch.modality_B, batch.labels_BL, done.sparsity_B)
    (losses.total + sum(done.terms.values()) / len(batch)).backward()
    sae.remove_parallel_gradient()
    return float(torch.nn.utils.get_total_norm([p.grad for p in sae.parameters() if p.grad is not None]))
