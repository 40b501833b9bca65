"""An artifact is whole or it is not there."""

from __future__ import annotations

import errno
import os
import socket

import pandas as pd
import pytest
import torch

from cmma.artifacts import files
from cmma.artifacts.files import atomic_path, remove_stale_temporaries, write_json
from cmma.artifacts.shards import ShardWriter, read_shard
from cmma.artifacts.store import Artifact, find_artifact, list_artifacts
from cmma.artifacts.verify import verify
from cmma.errors import ArtifactError


@pytest.fixture
def artifact(tmp_path):
    made = Artifact(tmp_path, "cache-activations", "0123456789ab")
    made.start("seed: 0\n")
    return made


def commit(artifact):
    artifact.commit(version=1, config={"seed": 0}, parents={}, summary={"n": 3}, device="cpu", seconds=1.0)


def write_shard(artifact, chunk, rank=0):
    rows = torch.arange(6, dtype=torch.float32).reshape(3, 2) + chunk
    cursor = {"start": 3 * chunk, "stop": 3 * chunk + 3}
    ShardWriter(artifact, rank).write(chunk, {"layer.0": rows}, rows=3, cursor=cursor)


def test_manifest_is_the_commit(artifact):
    write_shard(artifact, 0)
    artifact.write_table("t.parquet", pd.DataFrame({"a": [1]}))
    assert not artifact.finished
    commit(artifact)
    again = find_artifact(artifact.folder.parents[2], "0123")
    assert again.finished
    assert again.summary == {"n": 3}
    assert set(again.manifest["files"]) == {
        "resolved.yaml", "t.parquet", "shards/r00000-000000.safetensors", "shards/r00000-000000.safetensors.json"}
    assert verify(again) == []


def test_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")

    def write_and_fail():
        with atomic_path(target) as temporary:
            temporary.write_text("new")
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        write_and_fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"a\.json: No space left on device; free space"):
        write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == []


def test_a_shard_without_its_whole_size_does_not_count(artifact):
    write_shard(artifact, 0)
    write_shard(artifact, 1)
    shard = artifact.path("shards") / "r00000-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [info["chunk"] for info in artifact.sidecars()] == [0]
    writer = ShardWriter(artifact)
    assert writer.done(0)
    assert not writer.done(1)


def test_any_rank_takes_over_a_chunk(artifact):
    write_shard(artifact, 1, rank=1)
    assert ShardWriter(artifact, rank=0).done(1)


def test_a_shard_that_lost_its_sidecar_is_cleared_at_the_commit(artifact):
    write_shard(artifact, 0, rank=1)
    (artifact.path("shards") / "r00001-000000.safetensors.json").unlink()
    write_shard(artifact, 0, rank=0)
    commit(artifact)
    assert verify(artifact) == []
    assert not artifact.path("shards/r00001-000000.safetensors").exists()


@pytest.mark.parametrize("position", [0, 8, 60, -1])
def test_one_flipped_byte_is_found_and_named(artifact, position):
    write_shard(artifact, 0)
    commit(artifact)
    shard = artifact.path("shards") / "r00000-000000.safetensors"
    content = bytearray(shard.read_bytes())
    content[position] ^= 1
    shard.write_bytes(content)
    problems = verify(artifact)
    assert len(problems) == 1
    assert str(shard) in problems[0]


def test_missing_and_foreign_files_are_named(artifact):
    write_shard(artifact, 0)
    commit(artifact)
    artifact.path("resolved.yaml").unlink()
    artifact.path("stray.txt").write_text("x")
    problems = " ".join(verify(artifact))
    assert "resolved.yaml: missing" in problems
    assert "stray.txt: not listed" in problems


def test_truncated_shard_is_refused_by_name(artifact):
    write_shard(artifact, 0)
    shard = artifact.path("shards") / "r00000-000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(ArtifactError, match=r"r00000-000000\.safetensors cannot be read"):
        read_shard(shard, ["layer.0"])


def test_temporaries_of_dead_processes_go_those_of_living_ones_stay(tmp_path):
    here = socket.gethostname()
    dead, alive, elsewhere = (
        tmp_path / f".a.json.{name}.tmp" for name in (f"{here}.999999999", f"{here}.{os.getpid()}", "node7.999999999"))
    for path in (dead, alive, elsewhere):
        path.write_text("")
    remove_stale_temporaries(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()  # its process may well be alive there


def test_listing_and_ambiguous_keys(tmp_path):
    for key in ("aaaa00000000", "aaaa11111111"):
        Artifact(tmp_path, "train-sae", key).start("")
    assert [found.key for found in list_artifacts(tmp_path, "train-sae")] == ["aaaa00000000", "aaaa11111111"]
    with pytest.raises(ArtifactError, match="matches train-sae/aaaa00000000, train-sae/aaaa11111111"):
        find_artifact(tmp_path, "aaaa")
    with pytest.raises(ArtifactError, match="matches none"):
        find_artifact(tmp_path, "bbbb")
