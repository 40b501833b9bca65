"""Readers and standardisation."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.records import TensorReader, sample_slice
from cmma.sae.standardiser import Standardiser


def numbered_reader(n: int = 50, per_sample: int = 1, held_out: float = 0.2) -> TensorReader:
    """Records whose only coordinate is their number."""
    number_N = torch.arange(n)
    return TensorReader(number_N[:, None].float(), sample_N=number_N // per_sample, held_out=held_out)


def drawn(reader: TensorReader, steps: int, **how) -> list[list[float]]:
    return [batch.acts_BD[:, 0].tolist() for batch in islice(reader.batches(**how), steps)]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_the_batch_of_one_process(world, together):
    reader, how = numbered_reader(per_sample=3), {"batch_size": 8, "seed": 3, "together": together}
    alone = drawn(reader, 9, **how)
    parts = [drawn(reader, 9, rank=rank, world=world, **how) for rank in range(world)]
    assert [list(chain(*pieces)) for pieces in zip(*parts, strict=True)] == alone


def test_samples_stay_whole():
    sample_B = torch.tensor([7, 7, 3, 3, 3, 3, 3, 5, 1, 1])
    slices = [sample_slice(sample_B, rank, 4) for rank in range(4)]  # rank_slice cuts at 2, 5 and 7
    assert slices == [slice(0, 2), slice(2, 7), slice(7, 7), slice(7, 10)]
    assert sample_slice(sample_B, 0, 1) == slice(0, 10)


def test_starting_at_a_step_is_skipping_to_it():
    reader = numbered_reader()
    assert drawn(reader, 4, batch_size=7, seed=1, start_step=11) == drawn(reader, 15, batch_size=7, seed=1)[11:]


def test_every_epoch_has_every_training_record_once():
    reader = numbered_reader()
    stream = list(chain(*drawn(reader, 10, batch_size=8, seed=0)))  # 80 records, two epochs of 40
    held_out = {value for batch in reader.held_out(3) for value in batch.acts_BD[:, 0].tolist()}
    assert len(held_out) == 10
    assert sorted(stream[:40]) == sorted(stream[40:]) == sorted({*map(float, range(50))} - held_out)
    assert stream[:40] != stream[40:]


def test_a_sample_is_held_out_as_a_whole():
    reader = numbered_reader(n=60, per_sample=4)
    held_out = torch.cat([batch.sample_B for batch in reader.held_out(100)])
    assert (held_out.bincount()[held_out.unique()] == 4).all()


def test_lengths_that_disagree_are_named():
    with pytest.raises(DataError, match="modality_B"):
        TensorReader(torch.zeros(5, 2), modality_N=torch.zeros(4))


def test_standardised_records_have_norm_sqrt_d(planted):
    reader = planted.reader()
    standardiser = Standardiser.fit(reader)
    h_ND = standardiser.standardise(planted.acts_ND, planted.modality_N)
    for modality in (Modality.VISUAL, Modality.TEXTUAL):
        h_MD = h_ND[planted.modality_N == modality]
        assert h_MD.norm(dim=1).mean() == pytest.approx(32**0.5, rel=0.01)
        assert h_MD.mean(0).norm() < 0.2  # of 5.7; the held-out records move the mean a little
    torch.testing.assert_close(standardiser.restore(h_ND, planted.modality_N), planted.acts_ND, atol=1e-4, rtol=1e-5)


def test_statistics_are_those_of_the_training_records(planted):
    reader = planted.reader(held_out=0.0)
    standardiser = Standardiser.fit(reader, max_records=10**9)
    visual_ND = planted.acts_ND[planted.modality_N == Modality.VISUAL].double()
    seen = -(-12_000 // 4096) * 4096  # whole batches: some records of the second epoch are seen twice
    assert seen == 12_288
    torch.testing.assert_close(standardiser.mean_MD[0].double(), visual_ND.mean(0), rtol=0.02, atol=0.05)


def pair_reader(n: int = 6000) -> TensorReader:
    """Views of pairs: visual half of width 3 around 5, textual half of width 2 around −2, absent halves zero."""
    generator = torch.Generator().manual_seed(0)
    acts_ND = torch.cat([5 + 2 * torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator) - 2], 1)
    modality_N = torch.arange(n) % 3
    acts_ND[modality_N == Modality.VISUAL, 3:] = 0
    acts_ND[modality_N == Modality.TEXTUAL, :3] = 0
    return TensorReader(acts_ND, modality_N, blocks=(3, 2))


def test_a_joint_view_is_the_sum_of_its_single_views():
    reader = pair_reader()
    standardiser = Standardiser.fit(reader)
    both_BD = torch.randn(4, 5) + 3
    visual_BD, textual_BD = both_BD.clone(), both_BD.clone()
    visual_BD[:, 3:], textual_BD[:, :3] = 0, 0
    views = {m: torch.full((4,), int(m)) for m in (Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT)}
    h_visual_BD = standardiser.standardise(visual_BD, views[Modality.VISUAL])
    h_textual_BD = standardiser.standardise(textual_BD, views[Modality.TEXTUAL])
    assert (h_visual_BD[:, 3:] == 0).all()
    assert (h_textual_BD[:, :3] == 0).all()
    torch.testing.assert_close(h_visual_BD + h_textual_BD, standardiser.standardise(both_BD, views[Modality.JOINT]))
    torch.testing.assert_close(standardiser.restore(h_visual_BD, views[Modality.VISUAL]), visual_BD)


def test_each_half_of_a_pair_has_norm_sqrt_of_its_width():
    reader = pair_reader()
    standardiser = Standardiser.fit(reader)
    batch = next(reader.batches(4000, seed=0))
    h_BD = standardiser.standardise(batch.acts_BD, batch.modality_B)
    assert h_BD[batch.modality_B != Modality.TEXTUAL, :3].norm(dim=1).mean() == pytest.approx(3**0.5, rel=0.02)
    assert h_BD[batch.modality_B != Modality.VISUAL, 3:].norm(dim=1).mean() == pytest.approx(2**0.5, rel=0.02)


def test_broken_activations_are_refused():
    acts_ND = torch.randn(100, 4)
    acts_ND[7, 2] = float("inf")
    with pytest.raises(DataError, match="not finite"):
        Standardiser.fit(TensorReader(acts_ND, held_out=0.0))
    with pytest.raises(DataError, match="same vector"):
        Standardiser.fit(TensorReader(torch.ones(100, 4)))
