"""Classes of planted features, against the definition in docs/paper.md (Table 1) and arithmetic done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.errors import DataError
from cmma.features.specialisation import (
    ActivationSums,
    class_shares,
    selectivities,
    shares_over_seeds,
    specialise,
)

N_SAMPLES, VISUAL_TOKENS, TEXTUAL_TOKENS = 120, 9, 4


def planted(textual_share: list[float], firing: float = 0.4, seed: int = 0) -> ActivationSums:
    """One latent per entry: mean activation 1 − share on visual tokens and share on textual ones; −1 = dead."""
    generator = torch.Generator().manual_seed(seed)
    sums = ActivationSums(N_SAMPLES, len(textual_share))
    share_K = torch.tensor(textual_share)
    modality_T = torch.tensor([0] * VISUAL_TOKENS + [1] * TEXTUAL_TOKENS)
    mean_TK = torch.where(modality_T[:, None] == 0, 1 - share_K, share_K) * (share_K >= 0)
    present_N1K = torch.rand(N_SAMPLES, 1, len(share_K), generator=generator) < firing
    noise_NTK = 0.8 + 0.4 * torch.rand(N_SAMPLES, *mean_TK.shape, generator=generator)
    sample_NT = torch.arange(N_SAMPLES)[:, None].expand(-1, len(modality_T))
    sums.add((mean_TK * present_N1K * noise_NTK).flatten(0, 1), modality_T.repeat(N_SAMPLES), sample_NT.flatten())
    return sums


def test_planted_features_get_their_class():
    table = specialise(planted([0.0, 1.0, 0.5, 0.02, 0.98, 0.2, -1.0]), n_resamples=1000)
    assert list(table["class"]) == ["visual", "textual", "cross_modal", "visual", "textual", "cross_modal", "dead"]


def test_straddling_interval_is_mixed():
    """The estimate lies inside its own interval, so a threshold equal to it cannot be told from it."""
    sums = planted([0.05])
    estimate = specialise(sums, n_resamples=1000)["product"][0]
    table = specialise(sums, tau=estimate, n_resamples=1000)
    assert table["product_low"][0] < estimate < table["product_high"][0]
    assert table["class"][0] == "mixed"


def test_threshold_moves_the_class():
    sums = planted([0.2])  # product 0.64
    assert specialise(sums, tau=0.5)["class"][0] == "cross_modal"
    assert specialise(sums, tau=0.8)["class"][0] == "visual"


def test_balanced_selectivities_sum_to_two_and_empirical_follow_token_counts():
    sums_MK, tokens_M = np.array([[6.0, 0.0], [1.0, 3.0]]), np.array([6.0, 2.0])
    balanced = selectivities(sums_MK, tokens_M)
    np.testing.assert_allclose(balanced.visual + balanced.textual, 2.0)
    np.testing.assert_allclose(balanced.visual, [1 / 0.75, 0.0])  # means 1 and 0.5 → mean of means 0.75
    empirical = selectivities(sums_MK, tokens_M, weights="empirical")
    np.testing.assert_allclose(empirical.visual, [1 / (7 / 8), 0.0])
    np.testing.assert_allclose(empirical.textual, [0.5 / (7 / 8), 1.5 / (3 / 8)])


def test_bootstrap_equals_resampling_by_hand():
    """The matrix product is the same as drawing samples one by one with the same counts."""
    sums = planted([0.3, 0.05], seed=3)
    table = specialise(sums, n_resamples=200, seed=7)
    counts = np.random.default_rng(7).multinomial(N_SAMPLES, np.full(N_SAMPLES, 1 / N_SAMPLES), size=200)
    products = []
    for row in counts:
        drawn = np.repeat(np.arange(N_SAMPLES), row)
        mean_MK = sums.sums_NMK.numpy()[drawn].sum(0) / sums.tokens_NM.numpy()[drawn].sum(0)[:, None]
        any_K = mean_MK.mean(0)
        products.append(mean_MK[0] * mean_MK[1] / any_K**2)
    low, high = np.quantile(products, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(table["product_low"], low, rtol=1e-5)
    np.testing.assert_allclose(table["product_high"], high, rtol=1e-5)


def test_coverage_of_the_selectivity_interval():
    """A 95% interval holds the true product in about 95 of 100 worlds (binomial 3σ band: 88 to 100)."""
    hits = 0
    for seed in range(100):
        table = specialise(planted([0.3], seed=seed), n_resamples=300, seed=seed)
        hits += table["product_low"][0] <= 4 * 0.3 * 0.7 <= table["product_high"][0]
    assert hits >= 88


def test_dropped_and_joint_tokens_are_left_out():
    sums = ActivationSums(1, 1)
    sums.add(torch.tensor([[5.0], [7.0], [1.0], [2.0]]), torch.tensor([-1, 2, 0, 1]), torch.zeros(4, dtype=torch.long))
    assert sums.sums_NMK.flatten().tolist() == [1.0, 2.0]
    assert sums.tokens_NM.flatten().tolist() == [1, 1]


def test_batching_does_not_change_totals():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(0, 5, (60, 7), generator=generator).float()
    modality, sample = torch.arange(60) % 2, torch.arange(60) // 6
    whole, parts = ActivationSums(10, 7), ActivationSums(10, 7)
    whole.add(latents, modality, sample)
    for rows in torch.arange(60).split(11):
        parts.add(latents[rows], modality[rows], sample[rows])
    for name in ("sums_NMK", "maxima_NMK", "tokens_NM", "active_MK"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_dead_features_are_in_no_class():
    shares = class_shares(specialise(planted([0.0, 0.5, -1.0, -1.0]), n_resamples=100)["class"])
    assert shares == {"visual": 50.0, "textual": 0.0, "cross_modal": 50.0, "mixed": 0.0, "dead": 50.0}


def test_spread_over_seeds_is_the_sample_deviation():
    row = shares_over_seeds([{"visual": 10.0, "dead": 0.0}, {"visual": 14.0, "dead": 2.0}])
    assert row["visual"] == 12.0
    assert row["visual_error"] == pytest.approx(np.sqrt(8.0))
    assert row["kind"] == "SD over 2 SAE seeds"


def test_one_modality_alone_is_refused():
    sums = ActivationSums(2, 1)
    sums.add(torch.ones(2, 1), torch.zeros(2), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="both modalities"):
        specialise(sums)
