"""Recall at k by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.errors import DataError
from cmma.evaluation.retrieval import retrieve


def test_ranks_by_hand():
    image = np.eye(3)
    text = np.array([[1.0, 0, 0], [0.9, 0.8, 0], [0, 0.9, 0.8]])  # text 2 lies nearer to image 1 than to its own
    found = retrieve(image, text)
    assert found.image_to_text_N.tolist() == [0, 1, 0]  # image 1: text 2 has cosine .75, its own .66
    assert found.text_to_image_N.tolist() == [0, 1, 1]
    recall = found.recall(1)
    assert recall["image_to_text"].value == pytest.approx(2 / 3)
    assert recall["text_to_image"].value == pytest.approx(1 / 3)
    assert found.recall(2)["text_to_image"].value == 1


@pytest.mark.parametrize("constant", [1.0, 0.0, np.nan])
def test_an_encoder_that_tells_nothing_apart_retrieves_nothing(constant):
    found = retrieve(np.full((10, 4), constant), np.full((10, 4), constant), block=5)
    assert found.recall(4)["image_to_text"].value == 0
    assert found.recall(5)["text_to_image"].value == 1


def test_random_embeddings_retrieve_at_chance():
    rng = np.random.default_rng(0)
    found = retrieve(rng.normal(size=(2050, 32)), rng.normal(size=(2050, 32)), block=100)
    assert (len(found.image_to_text_N), found.n_left_out) == (2000, 50)
    assert found.recall(10)["text_to_image"].value == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 2000) ** 0.5)


def test_too_little_is_refused():
    with pytest.raises(DataError, match="at least two pairs"):
        retrieve(np.ones((1, 2)), np.ones((1, 2)))
