"""Two nodes train one dictionary; one of their processes is killed, and the job ends as if nothing had been.

`CMMA_NPROC` sets the processes per node; each costs the ten seconds of its imports twice.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from cmma.artifacts.shards import ShardWriter
from cmma.artifacts.store import Artifact
from cmma.config import ActivationsConfig, Config, LaunchConfig, PathsConfig
from cmma.models.spec import ModelSpec
from cmma.sae import load_sae
from cmma.sae.config import OptimConfig, preset
from cmma.stages.keys import Keys
from cmma.stages.runner import run_stage

D = 8
NPROC = int(os.environ.get("CMMA_NPROC", "1"))


def configuration(outputs: Path, launch: LaunchConfig) -> Config:
    return Config(
        model=ModelSpec(weights="random", architecture="none", n_layers=1),
        activations=ActivationsConfig(layers=[0]),
        sae=preset("msae", n_latents=24, initial_l0=6.0, lambda1=0.05, lambda2=0.01, lambda3=0.01),
        optim=OptimConfig(lr=1e-3, batch=40, steps=200, warmup=5, evaluate_every=100, checkpoint_every=10,
                          dead_after=200, resample_every=50),
        launch=launch, paths=PathsConfig(str(outputs)),
    )


def cache_activations(config: Config) -> None:
    """Write the artifacts that training reads: 200 samples, a visual and a textual record of each."""
    g = torch.Generator().manual_seed(0)
    keys, n = Keys(config), 200
    for stage in ("prepare-data", "cache-activations"):
        artifact = Artifact(Path(config.paths.outputs), stage, keys.key(stage))
        artifact.start("")
        if stage == "cache-activations":
            artifact.write_json(
                "records.json", {"layers": [0], "blocks": {"0": [D]}, "context": 0, "labels": ["a", "b"]})
            artifact.write_table("samples.parquet", pd.DataFrame(
                {"held_out": [i % 10 == 0 for i in range(n)], "labels": [["ab"[i % 2]] for i in range(n)]}))
            ShardWriter(artifact).write(0, {
                "layer.0": torch.randn(2 * n, D, generator=g).relu(),
                "modality": torch.arange(2).repeat(n).to(torch.int8),
                "sample": torch.arange(n).repeat_interleave(2), "position": torch.zeros(2 * n, dtype=torch.int32),
            }, 2 * n, {})
        artifact.commit(version=1, config={}, parents={}, summary={}, device="cpu", seconds=0.0)


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    children = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for line in children for child in line.split()]


def test_two_nodes_recover_from_a_killed_process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    alone = configuration(tmp_path / "alone", LaunchConfig(threads=1))
    cache_activations(alone)
    expected = load_sae(run_stage("train-sae", alone).folder).state_dict()

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    together = configuration(tmp_path / "together", LaunchConfig(
        kind="torchrun", nproc=NPROC, nodes=2, tp=2, rdzv_endpoint=f"localhost:{port}", max_restarts=1, threads=1))
    cache_activations(together)
    nodes = [get_context("fork").Process(target=run_stage, args=("train-sae", together)) for _ in range(2)]
    for node in nodes:
        node.start()
    artifact = Artifact(tmp_path / "together", "train-sae", Keys(together).key("train-sae"))
    while not list(artifact.path("checkpoint").glob("*.json")):
        assert all(node.is_alive() for node in nodes)
        time.sleep(0.01)
    assert not artifact.finished
    os.kill(workers_of(nodes[1].pid)[0], signal.SIGKILL)
    for node in nodes:
        node.join(300)
        assert node.exitcode == 0
    found = load_sae(artifact.folder).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
