"""Closed forms and definitions from the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from cmma.features.intrinsic import LogHistogram, cross_modal_consistency, cross_monosemanticity, monosemanticity


def test_monosemanticity_equals_the_pairwise_definition():
    """Pach et al.: the activation-weighted mean of cos(e_i, e_j) over all pairs i < j."""
    generator = torch.Generator().manual_seed(0)
    acts_NK = torch.rand(25, 6, generator=generator).double().square()
    embeddings_ND = torch.randn(25, 8, generator=generator).double()
    unit = embeddings_ND / embeddings_ND.norm(dim=1, keepdim=True)
    for feature in range(6):
        a = acts_NK[:, feature]
        a = (a - a.min()) / (a.max() - a.min())
        above = below = 0.0
        for i in range(25):
            for j in range(i + 1, 25):
                above += float(a[i] * a[j] * (unit[i] @ unit[j]))
                below += float(a[i] * a[j])
        assert float(monosemanticity(acts_NK, embeddings_ND)[feature]) == pytest.approx(above / below, abs=1e-12)


def test_monosemanticity_of_one_direction_is_one_and_of_opposites_is_negative():
    same = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    acts = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    assert float(monosemanticity(acts, same)) == pytest.approx(1.0)
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert float(monosemanticity(torch.tensor([[1.0], [1.0], [0.0]]), pair)) == pytest.approx(-1.0)


def test_monosemanticity_is_undefined_without_a_pair():
    assert math.isnan(float(monosemanticity(torch.tensor([[1.0], [0.0]]), torch.eye(2))))
    assert math.isnan(float(monosemanticity(torch.ones(3, 1), torch.eye(3))))


def test_cross_monosemanticity_equals_the_pairwise_definition():
    """The activation-weighted mean of cos(image i, text j) over the pairs of different samples."""
    generator = torch.Generator().manual_seed(0)
    visual_NK, textual_NK = torch.rand(2, 12, 3, generator=generator).double().square()
    image_ND, text_ND = torch.randn(2, 12, 5, generator=generator).double()
    found_K = cross_monosemanticity(visual_NK, textual_NK, image_ND, text_ND)
    for feature in range(3):
        v, t = visual_NK[:, feature], textual_NK[:, feature]
        v, t = (v - v.min()) / (v.max() - v.min()), (t - t.min()) / (t.max() - t.min())
        above = below = 0.0
        for i in range(12):
            for j in range(12):
                if i != j:
                    cosine = image_ND[i] @ text_ND[j] / (image_ND[i].norm() * text_ND[j].norm())
                    above += float(v[i] * t[j] * cosine)
                    below += float(v[i] * t[j])
        assert float(found_K[feature]) == pytest.approx(above / below, abs=1e-12)
    assert cross_monosemanticity(visual_NK, torch.zeros(12, 3), image_ND, text_ND).isnan().all()


def test_consistency_is_pearsons_r_over_samples_with_both_modalities():
    generator = np.random.default_rng(0)
    means = generator.random((40, 2, 3))
    means[:, 1, 0] = 2 * means[:, 0, 0] + 1
    means[:, 1, 1] = 5.0
    means[3, 1] = np.nan  # a sample without text
    got = cross_modal_consistency(torch.from_numpy(means))
    kept = np.delete(means, 3, axis=0)
    assert float(got[0]) == pytest.approx(1.0)
    assert math.isnan(float(got[1]))
    assert float(got[2]) == pytest.approx(pearsonr(kept[:, 0, 2], kept[:, 1, 2]).statistic)


def test_histogram_counts_every_active_token_in_its_decade():
    histogram = LogHistogram(2, low=-2, high=2, bins=4)
    latents = torch.tensor([[0.05, 0.0], [5.0, 50.0], [1e-9, 1e9], [5.0, 0.5]])
    histogram.add(latents, torch.tensor([0, 0, 1, -1]))
    assert histogram.counts_MKH[0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 1]]
    assert histogram.counts_MKH[1].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
