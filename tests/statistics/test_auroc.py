"""AUROC over images against scikit-learn, and by counting."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cmma.statistics.auroc import auroc_by_image


def planted(n_images: int, seed: int = 0):
    """Five things per image; what is true scores higher by one, and images differ."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(n_images), 5)
    truth = rng.random(len(images)) < 0.4
    scores = (truth + rng.normal(0, 1, len(images)) + rng.normal(0, 1, n_images)[images]).round(1)
    return scores, truth, images.tolist()


def test_value_equals_scikit_learn_with_ties():
    scores, truth, images = planted(40)
    assert auroc_by_image(scores, truth, images, 50).value == pytest.approx(roc_auc_score(truth, scores))


def test_counted_by_hand():
    """True 3 and 1, false 2 and 1: 3 beats both, 1 loses once and ties once: 2.5 of 4."""
    assert auroc_by_image([3, 1, 2, 1], [True, True, False, False], "abcd", 50).value == 2.5 / 4


def test_resamples_are_of_images():
    """A resample of images is scored like the data set in which those images are repeated."""
    scores, truth, images = planted(30, seed=1)
    found = auroc_by_image(scores, truth, images, 2000)
    rng = np.random.default_rng(3)
    own = np.array(images)
    values = []
    for _ in range(300):
        at = np.concatenate([np.flatnonzero(own == image) for image in rng.integers(0, 30, 30)])
        values.append(roc_auc_score(truth[at], scores[at]))
    assert found.standard_error == pytest.approx(np.std(values), rel=0.15)
    assert found.low < found.value < found.high


def test_undefined_with_one_kind_only():
    assert np.isnan(auroc_by_image([1.0, 2.0], [True, True], "ab", 50).value)
