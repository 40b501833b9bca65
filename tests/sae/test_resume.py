"""A run killed at any instant and started again ends in the same weights, bit for bit."""

from __future__ import annotations

import importlib.util
import os
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch

from cmma.errors import ArtifactError
from cmma.sae import load_sae
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.checkpoint import load_checkpoint, save_checkpoint
from cmma.sae.training.loop import train
from cmma.sae.training.trainer import Trainer

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def worker():
    specification = importlib.util.spec_from_file_location("sae_worker", WORKER)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_sae(folder / "sae").state_dict()


@pytest.fixture(scope="module")
def undisturbed(worker, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed")
    worker.run(folder)
    return weights(folder)


@pytest.mark.parametrize("step", [3, 17, 31])
def test_a_killed_run_ends_in_the_same_weights(worker, undisturbed, tmp_path, step):
    def kill(metrics: dict) -> None:
        if metrics["step"] == step and "lr" in metrics:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            worker.run(tmp_path, kill)
        finally:
            os._exit(0)  # never back into pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "sae").exists()
    worker.run(tmp_path)
    resumed = weights(tmp_path)
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())


class Stop(Exception):
    """Raised from the log to end a run at a chosen step."""


@pytest.mark.parametrize("arch", ["msae", "topk"])
@pytest.mark.parametrize("stop_at", [1, 13])
def test_a_run_stopped_at_any_step_resumes_exactly(planted, tmp_path, arch, stop_at):
    reader = planted.reader()
    config = OptimConfig(batch=64, steps=40, warmup=4, evaluate_every=9, checkpoint_every=5, log_every=1,
                         dead_after=200, resample_every=8)
    standardiser = Standardiser.fit(reader)

    def fresh():
        return build_sae(preset(arch, n_latents=48, k=4, lambda1=0.05, lambda2=0.01, lambda3=0.01), 32, standardiser)

    def stop(metrics):
        if metrics["step"] == stop_at:
            raise Stop

    whole, resumed = fresh(), fresh()
    train(whole, reader, config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(resumed, reader, config, tmp_path / "resumed", log=stop)
    resumed = fresh()  # a new process has nothing but the checkpoint
    result = train(resumed, reader, config, tmp_path / "resumed")
    assert result.steps == 40
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_finished_run_is_not_trained_again(planted, tmp_path):
    reader, logged = planted.reader(), []
    config = OptimConfig(batch=64, steps=3)
    sae = build_sae(preset("msae", n_latents=48), 32, Standardiser.fit(reader))
    first = train(sae, reader, config, tmp_path)
    assert train(sae, reader, config, tmp_path, log=logged.append) == first
    assert logged == []


def test_a_checkpoint_of_another_run_is_refused(planted, tmp_path):
    reader = planted.reader()
    sae = build_sae(preset("msae", n_latents=48), 32, Standardiser.fit(reader))
    train(sae, reader, OptimConfig(batch=64, steps=2), tmp_path)
    with pytest.raises(ArtifactError, match="another `optim`"):
        train(sae, reader, OptimConfig(batch=64, steps=2, lr=1e-2), tmp_path)


def test_the_previous_checkpoint_stays_until_the_next_is_complete(tmp_path):
    save_checkpoint(tmp_path, 5, {"x": torch.ones(3)}, {"mark": "a"})
    (tmp_path / "step-000000010.safetensors").write_bytes(b"half")  # killed before its description
    tensors, state = load_checkpoint(tmp_path)
    assert (state["step"], state["mark"], tensors["x"].tolist()) == (5, "a", [1, 1, 1])
    save_checkpoint(tmp_path, 15, {"x": torch.zeros(3)}, {"mark": "b"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000015.json", "step-000000015.safetensors"]


def test_a_truncated_checkpoint_is_named(tmp_path):
    save_checkpoint(tmp_path, 5, {"x": torch.ones(3)}, {})
    path = tmp_path / "step-000000005.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ArtifactError, match=r"step-000000005\.safetensors is truncated"):
        load_checkpoint(tmp_path)


def test_the_state_of_a_trainer_is_complete(planted, tmp_path):
    """Ten steps equal five steps, a copy of the state into a new trainer, and five more."""
    reader = planted.reader()
    config = OptimConfig(batch=64, steps=10, dead_after=100, resample_every=3)
    def trainer() -> Trainer:
        sae = build_sae(preset("msae", n_latents=48, adaptive_sparsity=True), 32, Standardiser.fit(reader))
        return Trainer(sae, config, reader.n_records, reader.n_labels, seed=2)
    one, other = trainer(), trainer()
    for batch in islice(reader.batches(64, 2), 5):
        one.advance(batch)
    other.restore({name: value.clone() for name, value in one.tensors().items()}, {**one.state(), "step": one.step})
    for batch in islice(reader.batches(64, 2, start_step=5), 5):
        one.advance(batch)
        other.advance(batch)
    assert all(torch.equal(other.tensors()[name], value) for name, value in one.tensors().items())
