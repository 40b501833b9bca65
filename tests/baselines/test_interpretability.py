"""Planted maps: a unit that lights up where its concept is, among units that do not."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.baselines.ground import Images
from cmma.baselines.interpretability import concept_kind, coverage, measure, overlap, thresholds
from cmma.baselines.methods.base import strongest
from cmma.features.concepts import Labels
from cmma.features.masks import concept_mask


@pytest.fixture(scope="module")
def world():
    """30 images of 9 patches, 4 pixels each; "red" fills patch 2, "ring" half of patch 5."""
    rng = np.random.default_rng(0)
    truth_IC = rng.random((30, 2)) < 0.5
    pixels_IPC = np.zeros((30, 9, 2))
    pixels_IPC[:, 2, 0], pixels_IPC[:, 5, 1] = 4 * truth_IC[:, 0], 2 * truth_IC[:, 1]
    from cmma.baselines.interpretability import Coverage

    where = Coverage(pixels_IPC, np.full(9, 4))
    maps_IPU = 0.1 * rng.random((30, 9, 6))
    maps_IPU[:, 2, 3] += truth_IC[:, 0]
    maps_IPU[:, 5, 1] += truth_IC[:, 1]
    return Images((), None, Labels(("red", "ring"), truth_IC)), where, strongest(maps_IPU)


def test_the_planted_units_are_found_and_fit_their_masks(world):
    images, where, reading = world
    found, units = measure(reading, reading, images, images, (where, where))
    assert units["unit"].tolist() == [3, 1]
    assert units["auroc"].tolist() == [1, 1]
    assert units["iou"].tolist() == [1, 0.5]  # half of a patch is all that a patch can fit
    assert found["mask IoU"].statistic(np.ones((1, 30)))[0] == pytest.approx(0.75)
    assert set(found) == {"detection AUROC", "mask IoU", "detection AUROC: color", "detection AUROC: shape"}


def test_overlap_is_a_count_of_pixels(world):
    images, where, reading = world
    both_IC, either_IC = overlap(reading.maps_IPU[:, :, [3, 1]], np.array([0.5, 0.5]), where)
    for image in range(30):
        assert both_IC[image].tolist() == [4 * images.labels.truth_NC[image, 0], 2 * images.labels.truth_NC[image, 1]]
        assert either_IC[image].tolist() == (4 * images.labels.truth_NC[image]).tolist()


def test_a_threshold_does_not_depend_on_the_scale(world):
    _, where, reading = world
    maps_IPC = reading.maps_IPU[:, :, [3, 1]]
    plain, iou_C = thresholds(maps_IPC, where)
    scaled, same_C = thresholds(5 * maps_IPC - 2, where)
    assert np.allclose(scaled, 5 * plain - 2)
    assert np.array_equal(iou_C, same_C)


def test_masks_lie_on_the_model_s_grid(toy, seen):
    where = coverage(toy, seen, 1)
    for image, sample in enumerate(seen.samples):
        for concept, name in enumerate(seen.labels.names):
            assert where.pixels_IPC[image, :, concept].sum() == concept_mask(sample, name).sum()
    assert where.area_P.sum() == seen.samples[0].mask.size


def test_words_are_values_of_attributes():
    assert [concept_kind(name) for name in ("red", "ring", "small", "striped", "red ring")] == [
        "color", "shape", "size", "texture", "object"]
