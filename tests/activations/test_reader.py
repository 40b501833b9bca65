"""Reading shards back: every record once per epoch, the same stream from any starting step and any number of ranks."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch

from cmma.activations.reader import ShardReader
from cmma.artifacts.shards import ShardWriter
from cmma.artifacts.store import Artifact
from cmma.errors import ArtifactError, ConfigError

SAMPLES, PER_SAMPLE = 20, 6


@pytest.fixture
def artifact(tmp_path):
    """Five shards of four samples; the vector of a record is (sample, position); context rows say their modality."""
    made = Artifact(tmp_path, "cache-activations", "0" * 12)
    made.start("")
    writer = ShardWriter(made)
    for chunk in range(5):
        samples = torch.arange(4 * chunk, 4 * chunk + 4)
        sample = samples.repeat_interleave(PER_SAMPLE)
        position = torch.arange(PER_SAMPLE, dtype=torch.int32).repeat(4)
        modality = (torch.arange(PER_SAMPLE) % 3).to(torch.int8).repeat(4)
        context = torch.zeros(4, 2, 1, 2)
        context[:, 0, 0, 0], context[:, 1, 0, 0] = 100 + samples, 200 + samples
        tensors = {
            "layer.3": torch.stack([sample.float(), position.float()], 1), "sample": sample, "position": position,
            "modality": modality, "context.3": context, "context_sample": samples,
        }
        writer.write(chunk, tensors, rows=len(sample), cursor={"start": 4 * chunk, "stop": 4 * chunk + 4})
    made.write_table("samples.parquet", pd.DataFrame({
        "sample": range(SAMPLES), "key": [f"k{i}" for i in range(SAMPLES)],
        "labels": [["even"] if i % 2 == 0 else ["odd", "rare"] for i in range(SAMPLES)],
        "held_out": [i % 5 == 0 for i in range(SAMPLES)],
    }))
    made.write_json("records.json", {"layers": [3], "blocks": {"3": [2]}, "context": 1, "labels": ["even", "odd"]})
    return made


def rows(batches):
    return [tuple(row) for batch in batches for row in batch.acts_BD.tolist()]


def test_an_epoch_holds_every_training_record_once(artifact):
    reader = ShardReader(artifact, 3, buffer_shards=2)
    assert reader.n_records == 16 * PER_SAMPLE
    epoch = rows(itertools.islice(reader.batches(8, seed=0), 16 * PER_SAMPLE // 8))
    assert sorted(epoch) == sorted((s, p) for s in range(SAMPLES) if s % 5 for p in range(PER_SAMPLE))
    assert epoch != sorted(epoch)


def test_held_out_is_the_rest(artifact):
    held_out = rows(ShardReader(artifact, 3).held_out(7))
    assert sorted(held_out) == sorted((s, p) for s in range(0, SAMPLES, 5) for p in range(PER_SAMPLE))


@pytest.mark.parametrize("buffer_shards", [1, 2, 8])
def test_starting_late_gives_the_same_stream(artifact, buffer_shards):
    whole = list(itertools.islice(ShardReader(artifact, 3, buffer_shards).batches(10, seed=4), 30))
    late = list(itertools.islice(ShardReader(artifact, 3, buffer_shards).batches(10, seed=4, start_step=13), 17))
    assert rows(whole[13:]) == rows(late)


@pytest.mark.parametrize("together", [False, True])
def test_ranks_together_see_the_batches_of_one_process(artifact, together):
    def batches(rank: int, world: int):
        stream = ShardReader(artifact, 3, 2).batches(10, seed=1, rank=rank, world=world, together=together)
        return itertools.islice(stream, 12)

    one, parts = batches(0, 1), [batches(rank, 3) for rank in range(3)]
    for whole, shares in zip(one, zip(*parts, strict=True), strict=True):
        assert rows([whole]) == rows(shares)


def test_context_is_of_the_other_modality_and_labels_of_the_sample(artifact):
    batch = next(ShardReader(artifact, 3).batches(64, seed=0))
    expected = torch.where(batch.modality_B == 0, 200 + batch.sample_B, 100 + batch.sample_B)
    expected[batch.modality_B == 2] = 0
    assert torch.equal(batch.context_BCD[:, 0, 0], expected.float())
    assert torch.equal(batch.labels_BL[:, 0], (batch.sample_B % 2 == 0).float())
    assert batch.labels_BL.shape == (64, 2)


def test_another_layer_and_a_truncated_shard_are_refused_by_name(artifact):
    with pytest.raises(ConfigError, match=r"layer=4 is not cached .* \[3\]"):
        ShardReader(artifact, 4)
    reader = ShardReader(artifact, 3)
    shard = artifact.path("shards/r00000-000002.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"r00000-000002\.safetensors"):
        list(reader.held_out(8))


def test_samples_stay_together_for_who_reads_pairs(artifact):
    reader = ShardReader(artifact, 3, buffer_shards=5)
    records = next(iter(reader.batches(reader.n_records, seed=1, together=True)))
    assert records.sample_B.unique_consecutive().numel() == records.sample_B.unique().numel()
    plain = next(iter(reader.batches(reader.n_records, seed=1)))
    assert sorted(plain.sample_B.tolist()) == sorted(records.sample_B.tolist())


def test_one_reader_keeps_orders_apart(artifact):
    """The buffer of one order is not taken for that of another, as when statistics are fitted before training."""
    reader = ShardReader(artifact, 3, buffer_shards=8)
    first = rows([next(reader.batches(10, seed=0))])
    second = rows([next(reader.batches(10, seed=1))])
    assert second == rows([next(ShardReader(artifact, 3, buffer_shards=8).batches(10, seed=1))]) != first
