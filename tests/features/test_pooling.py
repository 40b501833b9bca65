"""Pooling over the tokens of a sample, against loops."""

from __future__ import annotations

import torch

from cmma.features.pooling import PairPool
from cmma.modality import Modality
from cmma.sae.records import RecordBatch


def records(seed: int = 0) -> tuple[RecordBatch, torch.Tensor]:
    """40 records of samples 5, 7, 9, 11 and their latents; 9 has no text, 11 only a joint view beside its image."""
    generator = torch.Generator().manual_seed(seed)
    sample_N = torch.tensor([5, 7, 9, 11]).repeat_interleave(10)
    modality_N = torch.randint(0, 2, (40,), generator=generator).to(torch.int8)
    modality_N[20:] = Modality.VISUAL
    modality_N[-1] = Modality.JOINT
    acts_ND, latents_NK = torch.randn(40, 3, generator=generator), torch.rand(40, 6, generator=generator)
    return RecordBatch(acts_ND, modality_N, sample_N, torch.zeros(40)), latents_NK


def test_pairs_are_pooled_over_the_tokens_of_each_modality():
    batch, latents_NK = records()
    pool = PairPool(10, n_latents=6, d=3)
    for rows in (slice(0, 13), slice(13, 14), slice(14, 40)):  # a sample may span batches
        pool.add(batch[rows], latents_NK[rows])
    pairs = pool.pairs()
    assert pairs.sample_N.tolist() == [5, 7]
    for row, sample in enumerate((5, 7)):
        for modality in (0, 1):
            own = (batch.sample_B == sample) & (batch.modality_B == modality)
            torch.testing.assert_close(pairs.strongest_MNK[modality, row], latents_NK[own].amax(0))
            torch.testing.assert_close(pairs.mean_MNK[modality, row], latents_NK[own].mean(0))
            torch.testing.assert_close(pairs.acts_MND[modality, row], batch.acts_BD[own].mean(0))


def test_only_the_first_samples_are_kept():
    batch, latents_NK = records()
    pool = PairPool(1, n_latents=6, d=3)
    pool.add(batch, latents_NK)
    assert pool.pairs().sample_N.tolist() == [5]


def test_texts_are_swapped_and_images_are_not():
    batch, latents_NK = records()
    pool = PairPool(10, n_latents=6, d=3)
    pool.add(batch, latents_NK)
    pairs = pool.pairs()
    swapped = pairs.with_texts_of(torch.tensor([1, 0]))
    for name in ("strongest_MNK", "mean_MNK", "acts_MND"):
        before, after = getattr(pairs, name), getattr(swapped, name)
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[1].flip(0))
