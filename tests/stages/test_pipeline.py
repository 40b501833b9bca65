"""The whole chain through the command line, at the smallest size that still does every computation."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from cmma.artifacts.shards import read_shard
from cmma.artifacts.store import Artifact, list_artifacts
from cmma.models.spec import model_folder
from cmma.stages.table import STAGES

REPOSITORY = Path(__file__).parents[2]
PHOTOS = REPOSITORY.parent / "shared" / "data" / "photos"
SMALL = [
    "dataset.n_train=160", "dataset.n_balanced=60", "dataset.n_counter=20", "dataset.n_pairs=8",
    "activations.samples_per_shard=32", "sae.n_latents=256", "optim.steps=120", "optim.batch=512",
    "optim.checkpoint_every=20", "optim.evaluate_every=60", "interpret.n_samples=30", "interpret.max_pages=12",
    "interpret.n_bootstrap=100", "trace.max_samples=6", "trace.noise.draws=1", "intervention.max_samples=8",
    "intervention.n_controls=2", "intervention.selection.n_samples=8", "intervention.selection.verify=8",
    "intervention.max_new_tokens=12", "cmig.n_features=5", "cmig.n_samples=8", "cmig.n_selection_samples=8",
    "mitigation.n_calibration=6", "mitigation.n_held_out=4", "mitigation.candidates=2", "mitigation.max_features=1",
    "mitigation.strengths=[1.0]", "mitigation.gammas=[0.05]", "mitigation.alphas=[1.0]", "mitigation.head_counts=[1]",
    "mitigation.n_questions=6", "mitigation.n_controls=1", "mitigation.max_new_tokens=32", "mitigation.n_bootstrap=100",
    "cmig.random_graphs=5", "cmig.power_law_draws=20", "metric.n_samples=12", "metric.n_questions=24",
    "metric.batch_size=6", "metric.n_bootstrap=200", "launch.threads=1",
]

pytestmark = pytest.mark.skipif(
    not list(model_folder("builtin:toy_llava").glob("*.safetensors")), reason="toy_llava's weights are not here")


def start(words: list[str], outputs: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CMMA_OUTPUTS": str(outputs)}
    return subprocess.Popen(
        [sys.executable, "-m", "cmma.cli", *words], cwd=outputs, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )


def cmma(words: list[str], outputs: Path, status: int = 0) -> str:
    """Run a command to its end and return what it printed."""
    process = start(words, outputs)
    out, err = process.communicate(timeout=600)
    assert process.returncode == status, f"{out}\n{err}"
    return out + err


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Outputs of one finished small run."""
    folder = tmp_path_factory.mktemp("outputs")
    cmma(["run", *SMALL], folder)
    return folder


def only(outputs: Path, stage: str) -> Artifact:
    found = list_artifacts(outputs, stage)
    assert len(found) == 1
    return found[0]


def test_every_stage_is_finished_and_whole(outputs):
    artifacts = list_artifacts(outputs)
    assert {artifact.stage for artifact in artifacts} == {name for name, spec in STAGES.items() if spec.chained}
    assert all(artifact.finished for artifact in artifacts)
    assert len(list_artifacts(outputs, "intervene")) == 5
    assert "whole" in cmma(["verify"], outputs)
    assert (outputs / "report" / "index.html").is_file()


def test_a_second_run_computes_nothing(outputs):
    before = {a.folder: a.manifest for a in list_artifacts(outputs)}
    printed = cmma(["run", *SMALL], outputs)
    stages = [line for line in printed.splitlines() if "/artifacts/" in line]
    assert len(stages) == len(before)
    assert all("done before" in line for line in stages), printed
    assert {a.folder: a.manifest for a in list_artifacts(outputs)} == before


def test_another_lambda_redoes_what_depends_on_it(outputs, tmp_path):
    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    printed = cmma(["run", *SMALL, "sae.lambda1=2e-3", "run.until=interpret"], tmp_path)
    state = {line.split()[0]: "done before" in line for line in printed.splitlines() if "/artifacts/" in line}
    assert state == {"prepare-data": True, "cache-activations": True, "train-sae": False, "interpret": False}


def test_records_respect_their_quota_and_lie_in_the_index(outputs):
    cached = only(outputs, "cache-activations")
    index = cached.read_table("index.parquet")
    assert index.groupby(["sample", "modality"]).size().max() <= 32
    assert index["sample"].nunique() == 160
    for info in cached.sidecars():
        shard = read_shard(cached.path("shards") / info["file"], ["sample", "position", "modality"])
        rows = index[index["shard"] == info["file"]]
        for name, values in shard.items():
            assert rows[name].tolist() == values.tolist()


def test_one_flipped_byte_is_named(outputs):
    shard = next(only(outputs, "cache-activations").path("shards").glob("*.safetensors"))
    original = shard.read_bytes()
    damaged = bytearray(original)
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    try:
        printed = cmma(["verify"], outputs, status=5)
        assert str(shard) in printed
    finally:
        shard.write_bytes(original)


def test_the_trace_and_the_graph_hold_numbers(outputs):
    for artifact in list_artifacts(outputs, "trace"):
        cells = artifact.read_table("trace.parquet")
        assert len(cells) == len(artifact.summary["rows"]) * len(artifact.summary["groups"])
    edges = only(outputs, "build-cmig").read_table("edges.parquet")
    assert len(edges) == 5 * 4
    assert edges["p_excess"].between(0, 1).all()


def test_mitigation_tests_every_condition_on_images_that_chose_nothing(outputs, tmp_path):
    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    cmma(["mitigate", *SMALL], tmp_path)
    made = only(tmp_path, "mitigate")
    tested = made.read_table("test.parquet")
    assert {"clean", "random features", "random direction"} <= set(tested["condition"]) or not made.summary["strength"]
    said = pd.read_json(made.path("captions.jsonl"), lines=True)
    assert said.groupby("split")["key"].nunique().to_dict() == {"balanced": 4, "counter": 4}
    first = [f"counter-0-{index:08d}" for index in range(6)]
    assert not set(first) & set(said["key"])
    assert "toy_llava does not know the words" in made.summary["not_measured"]["prompt only"]


def test_a_sweep_leaves_one_artifact_per_combination(outputs, tmp_path):
    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts", ignore=shutil.ignore_patterns("train-sae"))
    cmma(["train-sae", *SMALL, "-m", "sae=msae,topk", "seed=0,1", "optim.steps=20"], tmp_path)
    assert len(list_artifacts(tmp_path, "train-sae")) == 4
    table = cmma(["ls", "train-sae"], tmp_path)
    assert table.count("topk") == table.count("msae") == 2
    assert all(heading in table for heading in ("FVU", "L0 visual", "L0 textual", "dead"))


def records(outputs: Path) -> pd.DataFrame:
    """All cached records in canonical order, whatever shard they lie in."""
    cached = only(outputs, "cache-activations")
    parts = []
    for info in cached.sidecars():
        layer = next(name for name in info["tensors"] if name.startswith("layer."))
        shard = read_shard(cached.path("shards") / info["file"], ["sample", "position", "modality", layer])
        frame = pd.DataFrame({name: shard[name].tolist() for name in ("sample", "modality", "position")})
        frame["vector"] = [row.numpy().tobytes() for row in shard[layer]]
        parts.append(frame)
    return pd.concat(parts).sort_values(["sample", "modality", "position"], ignore_index=True)


def test_two_processes_leave_the_same_records_bit_for_bit(outputs, tmp_path):
    cmma(["prepare-data", *SMALL], tmp_path)
    cmma(["cache-activations", *SMALL, "launch=torchrun", "launch.nproc=2"], tmp_path)
    ranks = {info["rank"] for info in only(tmp_path, "cache-activations").sidecars()}
    assert ranks == {0, 1}
    pd.testing.assert_frame_equal(records(tmp_path), records(outputs))


def test_workers_do_not_import_hydra(outputs):
    resolved = str(only(outputs, "train-sae").path("resolved.yaml"))
    program = (
        "import sys\nfrom pathlib import Path\nimport cmma.worker\nimport cmma.stages.runner, cmma.stages.train_sae\n"
        "import cmma.stages.cache_activations, cmma.stages.evaluate\n"
        f"from cmma.config import load_config\nload_config(Path({resolved!r}))\n"
        "assert 'hydra' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)


def weights(outputs: Path) -> dict[str, str]:
    """sha256 of every shard and of the dictionary."""
    found = {}
    for stage, prefix in (("cache-activations", "shards/"), ("train-sae", "sae.safetensors")):
        files = only(outputs, stage).manifest["files"]
        found |= {f"{stage}/{name}": entry["sha256"] for name, entry in files.items()
                  if name.startswith(prefix) and name.endswith(".safetensors")}
    return found


def test_killed_runs_end_in_the_same_bytes(outputs, tmp_path):
    """`kill -9` at random moments of the work; `CMMA_KILLS` sets how many per stage are tried."""
    kills, moments = int(os.environ.get("CMMA_KILLS", "3")), random.Random(0)
    cmma(["prepare-data", *SMALL], tmp_path)
    for stage in ("cache-activations", "train-sae"):
        folder = tmp_path / "artifacts" / stage
        killed = 0
        for _ in range(kills):
            process = start([stage, *SMALL], tmp_path)
            seen = _progress(folder)
            while process.poll() is None and _progress(folder) == seen:  # imports are not what is to be interrupted
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 0.8))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            process.communicate()
        assert killed > 0, f"{stage} was never caught at work"
        cmma([stage, *SMALL], tmp_path)
    assert weights(tmp_path) == weights(outputs)


def _progress(folder: Path) -> set[str]:
    """Names of the shards and checkpoints that a stage has written so far."""
    return {path.name for path in folder.rglob("*.safetensors")}


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not beside the checkout")
def test_full_size_clip_with_random_weights_on_photographs(tmp_path):
    words = ["model=clip_vit_b32", "model.weights=random", "dataset=folder", f"dataset.path={PHOTOS}",
             "activations.n_samples=8", "activations.layers=[5]", "launch.threads=1"]
    cmma(["prepare-data", *words], tmp_path)
    cmma(["cache-activations", *words], tmp_path)
    cached = only(tmp_path, "cache-activations")
    assert json.loads(cached.path("records.json").read_text())["blocks"]["5"] == [768, 512]
    assert set(cached.read_table("index.parquet")["modality"]) == {0, 1, 2}
    assert torch.isfinite(read_shard(cached.path("shards/r00000-000000.safetensors"), ["layer.5"])["layer.5"]).all()
