"""The components of semantic consistency, against explicit loops over embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.evaluation.clip_score import clip_score
from cmma.evaluation.consistency import COMPONENTS, consistency_scores, relative_changes, text_parts
from cmma.evaluation.embeddings import embed
from cmma.testbed.generate import generate_samples


def test_parts_stand_between_commas_and_full_stops():
    assert text_parts("a ring, a star. the ring is left of the star.") == [
        "a ring", "a star", "the ring is left of the star"
    ]  # fmt: skip
    assert text_parts(".") == ["."]


def test_components_by_explicit_loops(tiny_clip):
    samples = list(generate_samples("balanced", 0, 3))
    texts = [sample.caption for sample in samples]
    scores = consistency_scores(tiny_clip, samples, texts)
    found = embed(tiny_clip, samples, texts)
    for row, sample in enumerate(samples):
        image_1D = found.image_ND[row : row + 1]
        own = clip_score(image_1D, found.text_ND[row : row + 1])[0]
        others = [clip_score(image_1D, found.text_ND[i : i + 1])[0] for i in range(3) if i != row]
        parts = [clip_score(image_1D, embed(tiny_clip, [sample], [part]).text_ND)[0] for part in text_parts(texts[row])]
        expected = (own, own - np.mean(others), min(parts))
        assert [scores[name][row] for name in COMPONENTS] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_changes_are_in_percent_of_the_mean_before():
    before = {name: np.array([1.0, 3.0]) for name in COMPONENTS}
    after = {name: np.array([1.0, 3.0]) * (1 + k / 10) for k, name in enumerate(COMPONENTS)}
    changes = relative_changes(before, after, n_resamples=50)
    assert [changes[name].value for name in (*COMPONENTS, "all")] == pytest.approx([0, 10, 20, 10])
