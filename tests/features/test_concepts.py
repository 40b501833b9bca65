"""Concept matching against scikit-learn, brute force and a grid worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from cmma.data.samples import Sample
from cmma.features.concepts import (
    Labels,
    auroc,
    best_threshold,
    f1,
    halves,
    match_concepts,
    sample_labels,
)
from cmma.features.masks import MaskOverlap, cell_coverage, concept_mask


def scene(labels: list[str]) -> Sample:
    return Sample("s", Image.new("RGB", (4, 4)), "", {"labels": labels})


def test_auroc_equals_scikit_learn_with_ties():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, (80, 5)).astype(float)
    truth = generator.random((80, 3)) < 0.3
    expected = [[roc_auc_score(truth[:, c], scores[:, k]) for c in range(3)] for k in range(5)]
    np.testing.assert_allclose(auroc(scores, truth), expected)


def test_best_threshold_has_the_highest_f1_of_all_thresholds():
    generator = np.random.default_rng(1)
    scores, truth = generator.integers(0, 9, 60).astype(float), generator.random(60) < 0.4
    by_hand = {t: f1_score(truth, scores >= t) for t in np.unique(scores)}
    chosen = best_threshold(scores, truth)
    assert by_hand[chosen] == pytest.approx(max(by_hand.values()))
    assert f1(scores >= chosen, truth) == pytest.approx(by_hand[chosen])


def test_choice_and_score_use_disjoint_samples():
    """A latent that fits one concept on the selection half and another on the scoring half scores chance or worse."""
    choose, score = halves(200, seed=5)
    assert not set(choose) & set(score)
    assert set(choose) | set(score) == set(range(200))
    truth = np.random.default_rng(0).random((200, 2)) < 0.5
    latent = np.zeros((200, 1))
    latent[choose, 0] = truth[choose, 0]
    latent[score, 0] = 1.0 - truth[score, 0]
    row = match_concepts(latent, Labels(("a", "b"), truth), seed=5).iloc[0]
    assert row["concept"] == "a"
    assert row["concept_auroc"] == 0.0


def test_a_latent_finds_its_concept_and_a_silent_one_finds_none():
    truth = np.random.default_rng(0).random((120, 3)) < 0.4
    scores = np.stack([truth[:, 2] * 2.0, np.zeros(120)], axis=1)
    table = match_concepts(scores, Labels(("a", "b", "c"), truth))
    assert table.loc[0, ["concept", "concept_auroc", "concept_f1"]].tolist() == ["c", 1.0, 1.0]
    assert table.loc[1, "concept"] is None
    assert np.isnan(table.loc[1, "concept_auroc"])


def test_rare_and_universal_labels_are_not_concepts():
    samples = [scene(["all", "half"] if i % 2 else ["all"]) for i in range(20)] + [scene(["all", "rare"])]
    labels = sample_labels(samples, min_count=5)
    assert labels.names == ("half",)
    assert labels.truth_NC.sum() == 10


def test_concept_mask_takes_objects_that_match_every_word():
    mask = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    objects = [{"shape": "ring", "color": "red"}, {"shape": "ring", "color": "blue"}, {"shape": "star", "color": "red"}]
    sample = Sample("s", Image.new("RGB", (2, 2)), "", {"objects": objects}, mask)
    assert concept_mask(sample, "red").tolist() == [[False, True], [False, True]]
    assert concept_mask(sample, "red ring").tolist() == [[False, True], [False, False]]
    assert not concept_mask(sample, "cross").any()
    assert concept_mask(scene([]), "red") is None


def test_coverage_counts_pixels_per_patch():
    mask = np.zeros((4, 6), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[3, 5] = True
    assert cell_coverage(mask, 2, 3).tolist() == [[2, 0, 0], [0, 0, 1]]
    uneven = cell_coverage(np.ones((5, 5), dtype=bool), 2, 2)  # rows 0–2 fall into the first patch
    assert uneven.tolist() == [[9, 6], [6, 4]]


def test_iou_of_a_hand_grid():
    """2×2 patches of 4 pixels; the object covers patch 0 fully and half of patch 1; the latent fires on 1 and 3.

    Above 0: intersection 2, union 8 + 6 − 2 = 12 → 1/6. Above 0.5 only patch 1 is on: 2 / (4 + 6 − 2) = 1/4.
    """
    overlap = MaskOverlap(torch.tensor([[0.0, 0.5]]))
    acts, coverage = torch.tensor([[0.0], [0.9], [0.0], [0.2]]), torch.tensor([[4.0], [2.0], [0.0], [0.0]])
    area = torch.full((4,), 4.0)
    overlap.add(acts, coverage, area, half=0)
    torch.testing.assert_close(overlap.both_HKT[0] / overlap.either_HKT[0], torch.tensor([[1 / 6, 1 / 4]]).double())
    overlap.add(acts, coverage, area, half=1)
    overlap.add(torch.zeros(4, 1), coverage, area, half=1)  # a second image on which it is silent: union grows by 6
    iou, threshold = overlap.result()
    assert iou.tolist() == [pytest.approx(2 / 14)]
    assert threshold.tolist() == [0.5]


def test_iou_equals_pixel_masks():
    """Patch arithmetic equals comparing full pixel masks made by nearest-neighbour upsampling."""
    generator = np.random.default_rng(2)
    acts, mask = generator.random((3, 3)), generator.random((9, 9)) < 0.3
    pixels = np.kron(acts, np.ones((3, 3))) > 0.6
    overlap = MaskOverlap(torch.tensor([[0.6]]))
    overlap.add(torch.from_numpy(acts).view(9, 1), torch.from_numpy(cell_coverage(mask, 3, 3)).view(9, 1),
                torch.full((9,), 9.0), half=1)
    iou, _ = overlap.result()
    assert float(iou) == pytest.approx((pixels & mask).sum() / (pixels | mask).sum())
