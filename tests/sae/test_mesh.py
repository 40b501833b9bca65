"""Four processes, whatever their grid, end in the weights of one; so does a run that changes its grid on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageReader, load
from torch.multiprocessing import start_processes

from cmma.errors import ArtifactError, ConfigError
from cmma.sae import load_sae
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, SAEConfig, preset
from cmma.sae.io import save_sae
from cmma.sae.mesh import Mesh
from cmma.sae.records import RecordBatch, TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.checkpoint import load_checkpoint
from cmma.sae.training.loop import train
from cmma.sae.training.parallel import spread
from cmma.sae.training.trainer import Trainer

WORLD, D, K = 4, 12, 40
OPTIM = OptimConfig(lr=2e-3, batch=50, steps=20, warmup=4, evaluate_every=10, checkpoint_every=5, log_every=2,
                    clip=20.0, dead_after=60, resample_every=5, resample_until=0.8)
TERMS = {"lambda1": 0.05, "lambda2": 0.01, "lambda3": 0.01, "attention": True, "attention_rank": 3,
         "adaptive_sparsity": True, "target_l0_visual": 5.0, "target_l0_textual": 3.0, "initial_l0": 4.0}
CASES: dict[str, SAEConfig] = {
    "msae": preset("msae", n_latents=K, **TERMS),
    "mean": preset("msae", n_latents=K, reduction="mean", **TERMS),
    "in_parts": preset("msae", n_latents=K, **TERMS),
    "gated": preset("gated", n_latents=K, **TERMS),
    "jumprelu": preset("jumprelu", n_latents=K, bandwidth=0.5, **TERMS),
    "topk": preset("topk", n_latents=K, k=3, aux_k=2),
    "topk_per_modality": preset("topk", n_latents=K, **TERMS),
    "batchtopk": preset("batchtopk", n_latents=K, k=3, aux_k=2),
    "batchtopk_per_modality": preset("batchtopk", n_latents=K, **TERMS),
    "matryoshka": preset("matryoshka", n_latents=K, k=3, prefixes=[0.1, 0.3, 1.0], prefix_weights=[1.0, 1.0, 1.0]),
    "vl_sae": preset("vl_sae", n_latents=K, k=3),
    "sparc": preset("sparc", n_latents=K, k=3),
    "group_sparse": preset("group_sparse", n_latents=K, k=3),
    "separate_matched": preset("separate_matched", n_latents=K, k=3),
}
PARTS = {"in_parts": 3}
PAIRED = ("sparc", "group_sparse", "separate_matched")
GRIDS = [*((name, tp) for name in ("msae", "jumprelu", "topk", "batchtopk") for tp in (1, 2, 4)),
         *((name, 2) for name in CASES if name not in ("msae", "jumprelu", "topk", "batchtopk", *PAIRED)),
         *((name, 1) for name in PAIRED)]


def reader() -> TensorReader:
    """300 pairs with labels and context vectors, near a space of few dimensions: latents far from it die."""
    g = torch.Generator().manual_seed(0)
    n = 300
    shared_ND = torch.randn(n, 3, generator=g).relu() @ torch.randn(3, D, generator=g)
    acts_ND = torch.stack([shared_ND * 3 + 1, shared_ND.roll(1, 1)], 1).flatten(0, 1)
    acts_ND = acts_ND + 0.1 * torch.randn(2 * n, D, generator=g)
    return TensorReader(
        acts_ND, torch.arange(2).repeat(n), torch.arange(n).repeat_interleave(2),
        labels_NL=(torch.rand(2 * n, 5, generator=g) < 0.3).float(), context_NCD=torch.randn(2 * n, 2, D, generator=g))


class Stop(Exception):
    """Raised by a reader, in every process, to end a run."""


class StoppingReader(TensorReader):
    """Ends the run before a step."""

    stop_at = 0

    def batches(self, batch_size: int, seed: int, start_step: int = 0, *place, **options) -> Iterator[RecordBatch]:
        yield from islice(super().batches(batch_size, seed, start_step, *place, **options), self.stop_at - start_step)
        raise Stop


def run(name: str, mesh: Mesh, folder: Path, stop_at: int = 0) -> list[dict]:
    """Train one case and save it as FOLDER/sae; what was logged."""
    records, logged, optim = reader(), [], replace(OPTIM, accumulate=PARTS.get(name, 1))
    sae = spread(build_sae(CASES[name], D, Standardiser.fit(records), seed=1), mesh)
    if stop_at:
        records.__class__, records.stop_at = StoppingReader, stop_at
        with pytest.raises(Stop):
            train(sae, records, optim, folder / "checkpoint", seed=3)
        return logged
    train(sae, records, optim, folder / "checkpoint", logged.append, seed=3)
    save_sae(sae, folder / "sae")
    return logged


def work(rank: int, folder: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    meshes = {tp: Mesh(rank, WORLD, tp) for tp in (1, 2, 4)}
    for name, tp in GRIDS:
        logged = run(name, meshes[tp], folder / f"{name}-{tp}")
        if rank == 0:
            (folder / f"{name}-{tp}" / "logged.json").write_text(json.dumps(logged))
    run("msae", meshes[2], folder / "moving", stop_at=11)
    if rank == 0:
        shutil.copytree(folder / "moving" / "checkpoint", folder / "two-parts")
        run("msae", Mesh(), folder / "moving", stop_at=17)
    dist.barrier()
    run("msae", meshes[4], folder / "moving")
    for mesh in meshes.values():
        check_exchanges(mesh)
    dist.destroy_process_group()


def check_exchanges(mesh: Mesh) -> None:
    """The operations of a mesh against the same on the numbers of all processes."""
    rank = mesh.rank
    axes = {"dp": range(mesh.tp_rank, WORLD, mesh.tp), "all": range(WORLD),
            "tp": range(mesh.dp_rank * mesh.tp, (mesh.dp_rank + 1) * mesh.tp)}
    draw = torch.Generator().manual_seed(0)
    numbers_PRN = torch.randint(0, 6, (WORLD, 5, 7), generator=draw).double()  # with ties
    k_R = torch.tensor([1, 3, 7, 2, 5])
    for axis, members in axes.items():
        of_axis_PRN = numbers_PRN[list(members)]
        own = numbers_PRN[rank].clone().requires_grad_()
        total_RN = mesh.sum(axis, own)[0]
        torch.testing.assert_close(total_RN, of_axis_PRN.sum(0))
        total_RN.pow(3).sum().backward()  # the loss that every process has; d/dx Σ (Σ x)³ = 3 (Σ x)²
        torch.testing.assert_close(own.grad, 3 * of_axis_PRN.sum(0).square())
        assert torch.equal(mesh.gather(axis, own.detach()), of_axis_PRN)
        assert mesh.total(axis, rank) == sum(members)
        assert mesh.before(axis, rank) == sum(member for member in members if member < rank)
        ordered_RM = of_axis_PRN.transpose(0, 1).flatten(1).argsort(dim=1, descending=True, stable=True)
        for k in (k_R, 4):
            is_kept_RM = torch.zeros(ordered_RM.shape, dtype=torch.bool)
            for row, count in enumerate(k_R.tolist() if isinstance(k, torch.Tensor) else [k] * 5):
                is_kept_RM[row, ordered_RM[row, :count]] = True
            place = list(members).index(rank)
            expected_RN = numbers_PRN[rank] * is_kept_RM.unflatten(1, (-1, 7))[:, place]
            strongest_RN, where_RN = numbers_PRN[rank].sort(dim=1, descending=True, stable=True)
            most = 7 if isinstance(k, torch.Tensor) else k
            kept_RN = mesh.keep_largest(axis, strongest_RN[:, :most], k)
            if len(of_axis_PRN) > 1:
                assert torch.equal(torch.zeros_like(expected_RN).scatter(1, where_RN[:, :most], kept_RN), expected_RN)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights and logs of one process, by case."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def result(name: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
        if name not in found:
            logged = run(name, Mesh(), folder / name)
            found[name] = load_sae(folder / name / "sae").state_dict(), logged
        return found[name]

    return result


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory) -> Path:
    """What four processes left."""
    alone("msae")  # what a first run imports, the forked processes then have
    folder = tmp_path_factory.mktemp("together")
    start_processes(work, (folder,), WORLD, start_method="fork")
    return folder


@pytest.mark.parametrize(("name", "tp"), GRIDS)
def test_four_processes_end_like_one(together, alone, name, tp):
    weights, logged = alone(name)
    found = load_sae(together / f"{name}-{tp}" / "sae").state_dict()
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    theirs = json.loads((together / f"{name}-{tp}" / "logged.json").read_text())
    for mine, other in zip(logged, theirs, strict=True):
        not_compared = {"records_per_second": 0.0}
        assert {**other, **not_compared} == pytest.approx({**mine, **not_compared}, rel=1e-4, abs=1e-5)
    assert any(line.get("dead") for line in logged)  # or revival would not have been seen


def test_a_run_goes_on_over_other_processes(together, alone):
    """2 × 2 up to a checkpoint, then one process up to another, then 1 × 4."""
    weights, _ = alone("msae")
    found = load_sae(together / "moving" / "sae").state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_parts_of_a_checkpoint(together):
    """torch.distributed.checkpoint, an independent reader, puts the parts together as we do."""
    folder = together / "two-parts"
    tensors, state = load_checkpoint(folder, axes=a_trainer().latent_axes())
    assert (state["step"], len(state["bytes"])) == (10, 2)
    assert tensors["sae.W_enc"].shape == tensors["adam.W_dec.exp_avg"].shape == (K, D)
    assert tensors["objective.moving.joint_LK"].shape == (5, K)
    theirs = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load(theirs, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())


def a_trainer() -> Trainer:
    records = reader()
    return Trainer(build_sae(CASES["msae"], D, Standardiser.fit(records)), OPTIM, records.n_records, records.n_labels)


def test_a_checkpoint_without_one_of_its_parts_is_named(together, tmp_path):
    folder = shutil.copytree(together / "two-parts", tmp_path / "checkpoint")
    (folder / "step-000000010.1-of-2.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"step-000000010\.json is damaged"):
        load_checkpoint(folder)


def test_parts_without_a_description_are_no_checkpoint(together, tmp_path):
    folder = shutil.copytree(together / "two-parts", tmp_path / "checkpoint")
    (folder / "step-000000010.json").unlink()
    assert load_checkpoint(folder) is None


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="launch=torchrun"):
        Mesh(rank=0, world=2)
    with pytest.raises(ConfigError, match=r"launch\.tp=3 does not divide the 1 processes"):
        Mesh(tp=3)
    mesh = Mesh()
    mesh.tp = 3
    with pytest.raises(ConfigError, match=r"launch\.tp=3 does not divide sae.n_latents=40"):
        spread(build_sae(CASES["msae"], D, Standardiser.identity((D,))), mesh)
