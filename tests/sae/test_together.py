"""Dictionaries that train on one pass over the records end as they do alone, bit for bit, and read everything once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmma.errors import ConfigError
from cmma.sae.architectures.registry import CLASSES, build_sae
from cmma.sae.config import ARCHITECTURES, OptimConfig, SAEConfig, preset
from cmma.sae.records import RecordBatch, TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train, train_together
from cmma.sae.training.run import Run

D, K = 8, 24
OPTIM = OptimConfig(lr=3e-3, batch=40, steps=24, warmup=2, evaluate_every=5, checkpoint_every=4, log_every=1,
                    dead_after=60, resample_every=3)
SWEEP = [(seed, lambda1) for seed in (0, 1) for lambda1 in (0.05, 0.5)]


class CountingReader(TensorReader):
    """300 records of pairs, with labels; counts the batches that were read."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        shared_ND = torch.randn(150, D, generator=g).repeat_interleave(2, 0)
        acts_ND = shared_ND + 0.3 * torch.randn(300, D, generator=g)
        labels_NL = (torch.rand(300, 4, generator=g) < 0.3).float()
        super().__init__(acts_ND, torch.arange(2).repeat(150), torch.arange(150).repeat_interleave(2),
                         labels_NL=labels_NL)
        self.trained, self.held = 0, 0

    def batches(self, *how: int, **more: int) -> Iterator[RecordBatch]:
        for batch in super().batches(*how, **more):
            self.trained += 1
            yield batch

    def held_out(self, batch_size: int) -> Iterator[RecordBatch]:
        for batch in super().held_out(batch_size):
            self.held += 1
            yield batch


def run(folder: Path, reader: TensorReader, config: SAEConfig, seed: int = 0, optim: OptimConfig = OPTIM,
        log=lambda metrics: None) -> Run:
    sae = build_sae(config, D, Standardiser.fit(CountingReader()), seed)
    return Run(sae, reader, optim, folder, log, seed)


def swept(folder: Path, reader: TensorReader) -> list[Run]:
    return [run(folder / f"{seed}-{lambda1}", reader, preset("msae", n_latents=K, lambda1=lambda1), seed)
            for seed, lambda1 in SWEEP]


def weights(trained: list[Run]) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in run.trainer.tensors().items()} for run in trained]


def assert_equal(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[dict[str, Tensor]]:
    """Weights and optimiser states of the sweep's dictionaries, each trained by itself."""
    runs = swept(tmp_path_factory.mktemp("alone"), CountingReader())
    for each in runs:
        train_together([each])
    return weights(runs)


def test_a_sweep_reads_once_and_ends_as_single_runs_do(alone, tmp_path):
    single, reader = CountingReader(), CountingReader()
    train_together(swept(tmp_path / "single", single)[:1])
    runs = swept(tmp_path / "together", reader)
    train_together(runs)
    assert_equal(weights(runs), alone)
    assert reader.trained == single.trained == OPTIM.steps
    assert reader.held == single.held == 5  # one held-out batch after steps 5, 10, 15, 20 and 24
    assert len({each.sae.W_dec.sum().item() for each in runs}) == len(SWEEP)


@pytest.mark.parametrize("reads_pairs", [False, True])
def test_every_architecture_takes_part(tmp_path, reads_pairs):
    names = [name for name in ARCHITECTURES if CLASSES[name].reads_pairs == reads_pairs]
    configs = {name: preset(name, n_latents=K, k=4, lambda2=0.01, lambda3=0.01) for name in names}
    singles = [run(tmp_path / "alone" / name, CountingReader(), config) for name, config in configs.items()]
    for single in singles:
        train_together([single])
    together = CountingReader()
    runs = [run(tmp_path / "together" / name, together, config) for name, config in configs.items()]
    train_together(runs)
    assert_equal(weights(runs), weights(singles))


class Killed(Exception):
    """Raised from a log, as a signal would."""


def test_who_is_ahead_waits_and_who_is_done_stays(alone, tmp_path):
    """One is finished, two were killed at different steps, one has not begun; then the whole sweep is killed again."""
    def kill_at(step: int):
        def log(metrics: dict) -> None:
            if metrics["step"] == step:
                raise Killed
        return log

    def begun(kill: int | None = None) -> list[Run]:
        logs = [kill_at(kill)] * 4 if kill else [lambda metrics: None] * 4
        return [run(tmp_path / str(number), CountingReader(), preset("msae", n_latents=K, lambda1=lambda1), seed,
                    log=log) for number, ((seed, lambda1), log) in enumerate(zip(SWEEP, logs, strict=True))]

    train_together(begun()[:1])
    for number, step in ((1, 7), (2, 18)):
        with pytest.raises(Killed):
            train_together([begun(kill=step)[number]])
    assert [each.step for each in begun()] == [24, 4, 16, 0]
    with pytest.raises(Killed):
        train_together(begun(kill=11))
    assert [each.step for each in begun()] == [24, 8, 16, 8]
    last = begun()
    train_together(last)
    assert_equal(weights(last), alone)


def test_each_stops_at_its_own_step(tmp_path):
    """Patience, and another number of steps, end one dictionary and not the others."""
    optims = [OPTIM, replace(OPTIM, steps=9), replace(OPTIM, lr=1e-12, evaluate_every=3, patience=2)]
    config = preset("topk", n_latents=K, k=2)
    singles = [run(tmp_path / f"alone{n}", CountingReader(), config, optim=optim) for n, optim in enumerate(optims)]
    for single in singles:
        train_together([single])
    reader = CountingReader()
    runs = [run(tmp_path / f"together{n}", reader, config, optim=optim) for n, optim in enumerate(optims)]
    train_together(runs)
    assert [each.result for each in runs] == [each.result for each in singles]
    assert [(each.step < 24, each.stopped_early) for each in runs] == [(False, False), (True, False), (True, True)]
    assert_equal(weights(runs), weights(singles))


def test_one_that_fails_drops_out(alone, tmp_path):
    runs = swept(tmp_path, CountingReader())
    with torch.no_grad():
        runs[1].sae.b_pre.fill_(float("inf"))
    train_together(runs)
    assert "not finite at step 1" in str(runs[1].failure)
    assert not runs[1].finished
    del runs[1]
    assert_equal(weights(runs), [alone[0], *alone[2:]])


def test_the_seed_decides_features_and_not_the_order(tmp_path):
    """A dictionary with another order_seed sees other batches, and cannot share the pass."""
    config, reader = preset("topk", n_latents=K, k=2), CountingReader()
    first = run(tmp_path / "first", reader, config)
    other = run(tmp_path / "other", reader, config, optim=replace(OPTIM, order_seed=1))
    with pytest.raises(ConfigError, match=r"one optim\.batch and optim\.order_seed"):
        train_together([first, other])
    for each in (first, other):
        train(each.sae, reader, each.config, tmp_path / f"order{each.config.order_seed}")
    assert not torch.equal(first.sae.W_dec, other.sae.W_dec)
