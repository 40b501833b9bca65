"""The task `convergence`: laws that are known are found, the gradient is autograd's, the true atoms have δ = 0."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from cmma.benchmark.config import BenchmarkConfig
from cmma.benchmark.methods.autoencoders import SAEMethod
from cmma.benchmark.tasks.convergence import ConvergenceTask, gradient_norm, r_squared
from cmma.models.spec import ModelSpec
from cmma.sae.config import preset
from cmma.testbed.planted.config import PlantedConfig

SHARES = 1 / np.array([32, 16, 8, 4, 2, 1])


def exponential(n, a, b):
    return a * np.exp(-b * n)


def power(n, a, b):
    return a * n**-b


def test_the_right_law_fits_and_the_other_does_not():
    falling, slow = exponential(SHARES, 0.8, 5.0), power(SHARES, 0.05, 0.7)
    assert r_squared(exponential, SHARES, falling) == pytest.approx(1)
    assert r_squared(power, SHARES, falling) < 0.98
    assert r_squared(power, SHARES, slow) == pytest.approx(1)
    assert r_squared(exponential, SHARES, slow) < 0.98
    assert np.isnan(r_squared(power, SHARES, np.ones(6)))


def test_the_true_atoms_are_specialised_whatever_the_samples_and_shuffled_ones_never(oracle):
    config = BenchmarkConfig(task="convergence", planted=oracle.planted, scale=0.2, n_latents=36)
    task = ConvergenceTask(config, ModelSpec())
    world = task.world(0)

    class Knowing:
        def fit(self, reader, budget, seed):
            return oracle(world)

    found = task.run(Knowing(), world, 0)
    assert [value for name, value in task.score(found, world).items() if name.startswith("delta")] == [0.0] * 6
    shuffled = task.score(found, task.shuffle(world, 0))
    assert all(shuffled[name] == chance for name, chance in task.chance(world).items())


def test_the_gradient_is_that_of_the_written_objective():
    world = ConvergenceTask(
        BenchmarkConfig(planted=PlantedConfig(d=16, n_visual=4, n_textual=4, n_shared=4), scale=0.05, n_latents=24),
        ModelSpec()).world(0)
    method = SAEMethod(lambda budget: preset("standard", n_latents=budget.n_latents, lambda1=0.3))
    *_, trainer = islice(method.steps(world.reader, world.budget, 0), 5)
    batch = next(world.reader.batches(64, 1))
    before = {name: value.clone() for name, value in trainer.sae.state_dict().items()}

    sae = trainer.sae
    h_BD = sae.standardiser.standardise(batch.acts_BD, batch.modality_B)
    latents_BK = ((h_BD - sae.b_pre) @ sae.W_enc.T + sae.b_enc).relu()
    error_BD = latents_BK @ sae.W_dec + sae.b_pre - h_BD
    loss = (error_BD.square().sum() + 0.3 * latents_BK.sum()) / 64
    gradients = dict(zip(("W_enc", "W_dec", "b_enc", "b_pre"),
                         torch.autograd.grad(loss, (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_pre)), strict=True))
    gradients["W_dec"] -= (gradients["W_dec"] * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
    expected = torch.stack([value.square().sum() for value in gradients.values()]).sum().sqrt().detach()

    assert gradient_norm(trainer, batch) == pytest.approx(expected.item(), rel=1e-4)
    assert all(torch.equal(before[name], value) for name, value in trainer.sae.state_dict().items())
