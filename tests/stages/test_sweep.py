"""`cmma train-sae -m`: jobs that want the same batches share one pass, and each leaves the artifact of a single run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cmma.activations import reader
from cmma.artifacts.store import Artifact, list_artifacts
from cmma.stages import passes
from cmma.stages.metrics_log import MetricsLog

TINY = [
    "model.weights=random", "model.architecture=llava-tiny", "model.n_layers=4", "activations.layers=[1,2]",
    "activations.samples_per_shard=8", "activations.context=0", "dataset.n_train=96", "dataset.n_balanced=4",
    "dataset.n_counter=4", "dataset.n_pairs=4", "launch.threads=1",
]  # fmt: skip
TRAIN = ["train-sae", *TINY, "sae.n_latents=48", "optim.batch=256", "optim.steps=40", "optim.evaluate_every=20",
         "optim.checkpoint_every=10", "optim.log_every=10"]  # fmt: skip
SWEEP = [(seed, lambda1) for seed in (0, 1) for lambda1 in (0.1, 1.0)]
SWEPT = ["-m", "seed=0,1", "sae.lambda1=0.1,1"]
SHARDS = 12

Hashes = dict[tuple[str, int, float], str]


@pytest.fixture(scope="module")
def cached(tmp_path_factory, command) -> Path:
    """Outputs with cached activations and nothing else."""
    outputs = tmp_path_factory.mktemp("cached")
    assert [command(outputs, stage, *TINY)[0] for stage in ("prepare-data", "cache-activations")] == [0, 0]
    return outputs


@pytest.fixture
def outputs(cached, tmp_path) -> Path:
    """A copy of them."""
    return fresh(cached, tmp_path)


def fresh(cached: Path, folder: Path) -> Path:
    shutil.copytree(cached / "artifacts", folder / "artifacts")
    return folder


def trained(outputs: Path) -> dict[tuple[int, float], Artifact]:
    """Finished dictionaries by seed and lambda1."""
    finished = [artifact for artifact in list_artifacts(outputs, "train-sae") if artifact.finished]
    configs = [artifact.manifest["config"] for artifact in finished]
    return {(config["seed"], config["sae"]["lambda1"]): artifact
            for config, artifact in zip(configs, finished, strict=True)}


def hashes(outputs: Path) -> Hashes:
    """sha256 of every dictionary."""
    return {(artifact.key, *job): artifact.manifest["files"]["sae.safetensors"]["sha256"]
            for job, artifact in trained(outputs).items()}


@pytest.fixture(scope="module")
def alone(cached, tmp_path_factory, command) -> tuple[Hashes, Counter[str]]:
    """The sweep's dictionaries, each trained by a command of its own; and the reads of the last of these."""
    outputs = fresh(cached, tmp_path_factory.mktemp("alone"))
    for seed, lambda1 in SWEEP:
        with counted_reads() as reads:
            assert command(outputs, *TRAIN, f"seed={seed}", f"sae.lambda1={lambda1}")[0] == 0
    return hashes(outputs), reads


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """How often the vectors of each shard are read within the block."""
    read, counts = reader.read_shard, Counter[str]()

    def counting(path: Path, names: list[str]) -> Any:
        counts.update([path.name] if "layer.2" in names else [])
        return read(path, names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "read_shard", counting)
        yield counts


def test_a_sweep_leaves_the_bytes_of_single_runs_and_reads_no_more_than_one(outputs, alone, command):
    with counted_reads() as reads:
        status, printed = command(outputs, *TRAIN, *SWEPT)
    assert status == 0, printed
    assert "4 dictionaries train on one pass over cache-activations" in printed
    assert (hashes(outputs), reads) == alone
    assert len({*hashes(outputs).values()}) == len(SWEEP)
    for artifact in trained(outputs).values():
        steps = [json.loads(line)["step"] for line in artifact.path("metrics.jsonl").open()]
        assert steps == [10, 20, 20, 30, 40, 40]  # logged every ten steps, measured at two of them
        assert not artifact.path("checkpoint").exists()

    # 96 samples of 41 records, nine tenths of them for training: 40 steps of 256 records end in the third epoch. Beside
    # these three there are two evaluations and the final one; the statistics are from the buffer of the first epoch.
    assert len(reads) == SHARDS
    assert {*reads.values()} == {6}


def test_what_is_done_is_skipped_and_what_is_half_done_goes_on(outputs, alone, command, monkeypatch):
    def interrupted(log: MetricsLog, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 30:
            raise KeyboardInterrupt

    assert command(outputs, *TRAIN, "seed=1", "sae.lambda1=0.1")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "__call__", interrupted)
        assert command(outputs, *TRAIN, "seed=0", "sae.lambda1=1")[0] == 130
    assert [path.stem for path in (outputs / "artifacts").glob("train-sae/*/checkpoint/*.json")] == ["step-000000020"]
    status, printed = command(outputs, *TRAIN, *SWEPT)
    assert status == 0
    assert printed.count("done before") == 1
    assert "3 dictionaries train on one pass" in printed
    assert hashes(outputs) == alone[0]


def test_what_does_not_fit_into_memory_trains_in_groups(outputs, alone, command, monkeypatch):
    weights, biases = 2 * 48 * 32, 48 + 32
    monkeypatch.setattr(passes, "_memory", lambda device: 3.5 * (weights + biases) * 16)  # of which 0.75 are used
    status, printed = command(outputs, *TRAIN, *SWEPT)
    assert status == 0
    assert "4 dictionaries do not fit" in printed
    assert printed.count("2 dictionaries train on one pass") == 2
    assert hashes(outputs) == alone[0]


def test_jobs_that_want_other_batches_have_passes_of_their_own(outputs, command):
    words = ["optim.steps=4", "-m", "layer=1,2", "optim.order_seed=0,1", "sae=msae,sparc"]
    status, printed = command(outputs, *TRAIN, *words)  # sparc wants pairs
    assert status == 0
    assert "on one pass" not in printed
    assert printed.count("finished: ") == 8


def test_one_that_fails_is_named_and_the_others_are_finished(outputs, command):
    status, printed = command(outputs, *TRAIN, "-m", "optim.lr=1e-3,1e30,3e-3")
    assert status == 4
    assert printed.count("finished: ") == 2
    assert printed.splitlines()[-1].startswith("cmma: optim.lr=1e+30: the loss is not finite at step 10")
