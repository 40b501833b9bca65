"""The concepts task against masks counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.benchmark.config import BenchmarkConfig
from cmma.benchmark.tasks.concepts import CONCEPTS, ConceptsTask, mask_overlap
from cmma.features.masks import concept_mask
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples


@pytest.fixture(scope="module")
def task():
    spec = ModelSpec(name="tiny", weights="random", source="", architecture="llava-tiny", n_layers=4)
    return ConceptsTask(BenchmarkConfig(task="concepts", scale=0.1), spec)


class Seeing:
    """A dictionary that is told, for each patch, how many pixels of each concept it holds."""

    def __init__(self, coverage_NPC):
        self.latents = torch.from_numpy(coverage_NPC).float().flatten(0, 1)

    def encode(self, acts_BW, modality_B):
        return self.latents


def test_a_dictionary_that_sees_the_objects_scores_what_patches_can_and_a_shuffled_one_little(task):
    world = task.world(0)
    found = Seeing(world.coverage_NPC)
    scores = task.score(found, world)
    assert scores["auroc"] == 1.0
    shuffled = task.score(found, task.shuffle(world, 0))
    chance = task.chance(world)
    touched_C = (world.coverage_NPC > 0).sum((0, 1)) * world.area
    assert scores["iou"] > 0.95 * (world.coverage_NPC.sum((0, 1)) / touched_C).mean() > 3 * chance["iou"]
    assert shuffled["iou"] < 1.5 * chance["iou"]
    assert abs(shuffled["auroc"] - 0.5) < 0.15


def test_overlap_is_the_count_of_pixels():
    """One image, patches of 8 × 8 pixels; the latent is active on the patches that the red objects touch."""
    sample = next(s for s in generate_samples("balanced", 0, 50) if "red" in s.labels)
    mask_YX = concept_mask(sample, "red")
    touched_YX = mask_YX.reshape(6, 8, 6, 8).any(axis=(1, 3))
    coverage_NPC = mask_YX.reshape(6, 8, 6, 8).sum(axis=(1, 3)).reshape(1, 36, 1)
    latents_NPK = torch.from_numpy(touched_YX.reshape(1, 36, 1)).double()
    overlap_TKC = mask_overlap(latents_NPK, coverage_NPC, torch.ones(1), 64.0)
    painted_YX = np.kron(touched_YX, np.ones((8, 8), dtype=bool))
    expected = (painted_YX & mask_YX).sum() / (painted_YX | mask_YX).sum()
    np.testing.assert_allclose(overlap_TKC, expected)


def test_coverage_holds_every_object(task):
    coverage_NPC = task.world(1).coverage_NPC
    for kind in (slice(0, 6), slice(6, 12), slice(12, 14), slice(14, 17)):  # each object has one word of each kind
        np.testing.assert_array_equal(coverage_NPC[..., kind].sum((1, 2)), coverage_NPC[..., :6].sum((1, 2)))
    assert coverage_NPC.shape[2] == len(CONCEPTS)
