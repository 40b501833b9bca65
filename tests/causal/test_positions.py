"""Position groups, and the statistics of a trace, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal.positions import object_patches, patch_groups, token_groups
from cmma.causal.result import PatchResult
from cmma.data.samples import Sample


def test_everything_in_which_a_pair_differs_is_in_the_changed_group(pairs):
    """Exact masks: outside the changed object's patches the two images are equal."""
    for clean, corrupt in zip(pairs[::2], pairs[1::2], strict=True):
        groups = patch_groups(clean, corrupt, (6, 6), "objects")
        differs = (np.asarray(clean.image, dtype=int) != np.asarray(corrupt.image, dtype=int)).any(axis=-1)
        cell = differs.shape[0] // 6
        differing = np.flatnonzero(differs.reshape(6, cell, 6, cell).any(axis=(1, 3)))
        assert set(differing) <= set(groups["changed object"])
        assert sorted(np.concatenate(list(groups.values()))) == list(range(36))


def test_objects_of_one_image_are_groups_of_their_own(pairs):
    sample = pairs[0]
    groups = patch_groups(sample, sample, (6, 6), "objects")
    assert [name for name in groups if name.startswith("object")] == [
        f"object {i + 1}" for i in range(len(sample.objects))
    ]
    assert patch_groups(Sample("x", sample.image, ""), sample, (2, 3), "objects")["image"].tolist() == list(range(6))
    assert list(patch_groups(sample, sample, (2, 2), "each")) == ["patch 0,0", "patch 0,1", "patch 1,0", "patch 1,1"]


def test_masks_are_cropped_as_images_are(pairs):
    """A wide image is cropped to its central square: a mask outside it belongs to no patch."""
    mask = np.zeros((10, 30), dtype=np.uint8)
    mask[:, :5] = 1
    assert not object_patches(Sample("x", pairs[0].image, "", mask=mask), [0], (2, 2)).any()
    mask[0, 10] = 1
    seen = object_patches(Sample("x", pairs[0].image, "", mask=mask), [0], (2, 2))
    assert seen.tolist() == [True, False, False, False]


def test_tokens_are_counted_back_from_the_last_prompt_token():
    """BOS, a system token, three patches, four question tokens, an answer that belongs to no group."""
    modality = torch.tensor([-1, 1, 0, 0, 0, 1, 1, 1, 1, 1])
    groups = token_groups(modality, end=8, how="each")
    assert {name: where.tolist() for name, where in groups.items()} == {
        "last-3": [5], "last-2": [6], "last-1": [7], "last": [8]
    }  # fmt: skip
    whole = token_groups(modality, end=8, how="whole")
    assert whole["question"].tolist() == [5, 6, 7]


def result(**changes):
    """Two images, the first with two draws; one row; the second image lacks group "b"."""
    fields = {
        "rows": ("r",), "groups": ("a", "b"), "keys": ("x", "x", "y", "z"),
        "score_CRG": np.array([[[1.0, 0.0]], [[3.0, 2.0]], [[5.0, np.nan]], [[9.0, 9.0]]]),
        "low_C": np.array([0.0, 0.0, 1.0, 0.0]), "high_C": np.array([4.0, 4.0, 5.0, 9.0]),
        "correct_C": np.array([True, True, True, False]), "correct_only": True, "readout": "p",
    }  # fmt: skip
    return PatchResult(**(fields | changes))


def test_effects_average_draws_first_and_leave_wrong_answers_out():
    traced = result()
    assert traced.images == ("x", "y")
    assert (traced.n_correct, traced.n_total) == (2, 3)
    np.testing.assert_array_equal(traced.effect_NRG[:, 0], [[2.0, 1.0], [4.0, np.nan]])
    np.testing.assert_array_equal(traced.span_N, [4.0, 4.0])
    table = traced.summary(n_resamples=200).set_index("group")
    assert table.loc["a", "effect"] == 3.0
    assert table.loc["a", "recovery"] == 0.75
    assert table.loc["a", "n"] == 2
    assert table.loc["b", "n"] == 1
    assert table.loc["b", "recovery"] == 0.25
    assert np.isnan(table.loc["b", "effect_low"])  # one image has no interval
    assert len(traced.to_frame()) == 7
    assert result(correct_only=False).images == ("x", "y", "z")


def test_recovery_interval_covers_as_often_as_it_says():
    """Linearised ratio, 40 images, truth 0.5: 95% intervals over 60 simulated traces miss at most 8 (p < 0.01)."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(60):
        span = rng.gamma(4.0, 0.5, size=40)
        effect = 0.5 * span + rng.normal(0, 0.3, size=40)
        keys = tuple(map(str, range(40)))
        row = result(
            groups=("a",), keys=keys, score_CRG=effect[:, None, None], low_C=np.zeros(40), high_C=span,
            correct_C=np.ones(40, dtype=bool),
        ).summary(n_resamples=400).iloc[0]  # fmt: skip
        missed += not row["recovery_low"] <= 0.5 <= row["recovery_high"]
    assert missed <= 8


def test_a_corruption_that_does_nothing_has_no_recovery():
    still = result(low_C=np.zeros(4), high_C=np.zeros(4))
    assert not np.isfinite(still.summary(n_resamples=100)["recovery_low"]).any()
    assert still.totals()["total_effect"] == pytest.approx(0)
