"""Activities whose value follows from the definition, and phases that were planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.errors import ConfigError, DataError
from cmma.phases.analysis import Unit, analyse, fit_rise, on_grid, phase_means, phase_of, relative_depth, unit_table
from cmma.phases.config import PhasesConfig
from cmma.phases.layers import cross_modal_activity, read_layer
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser


def test_activity_is_zero_for_separate_and_one_for_equal_features():
    tokens = np.array([100.0, 10.0])
    assert cross_modal_activity(np.array([[5.0, 0.0], [0.0, 3.0]]), tokens) == 0
    assert cross_modal_activity(np.array([[100.0, 20.0], [10.0, 2.0]]), tokens) == pytest.approx(1)
    # One feature of each kind: means (1, 1) and (2, 0) are equally active, products 1 and 0.
    assert cross_modal_activity(np.array([[100.0, 200.0], [10.0, 0.0]]), tokens) == pytest.approx(0.5)
    # Means (3, 1): S = 1.5 and 0.5, product 0.75.
    assert cross_modal_activity(np.array([[300.0], [10.0]]), tokens) == pytest.approx(0.75)
    assert np.isnan(cross_modal_activity(np.zeros((2, 3)), tokens))


def _records(n_samples: int, d: int) -> RecordBatch:
    """Four tokens a sample, two of each modality: visual ones along axis 0, textual along 1, both along axis 2."""
    generator = torch.Generator().manual_seed(0)
    modality = torch.tensor([0, 0, 1, 1]).repeat(n_samples)
    acts = torch.zeros(4 * n_samples, d)
    acts[torch.arange(len(acts)), modality] = 1 + torch.rand(len(acts), generator=generator)
    acts[:, 2] = 1.0
    sample = 10 * torch.arange(n_samples).repeat_interleave(4)
    return RecordBatch(acts, modality.to(torch.int8), sample, torch.zeros(len(acts), dtype=torch.long))


def test_a_layer_is_read_from_records_whatever_their_batches():
    d, records = 4, _records(30, 4)
    sae = build_sae(preset("standard", n_latents=d), d, Standardiser.identity((d,)))
    with torch.no_grad():
        for name, value in (("W_enc", torch.eye(d)), ("W_dec", torch.eye(d)), ("b_enc", torch.zeros(d))):
            getattr(sae, name).copy_(value)
    whole = read_layer(sae, [records], 0.1, "balanced", 50, 0)
    pieces = read_layer(sae, [records[:50], records[50:]], 0.1, "balanced", 50, 0)
    assert whole.shares == pytest.approx(
        {"visual": 100 / 3, "textual": 100 / 3, "cross_modal": 100 / 3, "mixed": 0, "dead": 25})
    np.testing.assert_allclose(pieces.activity_R, whole.activity_R)
    # Features 0 and 1 have mean activations of about 0.75 over both modalities and product 0, feature 2 has 1 and 1.
    assert whole.activity == pytest.approx(1 / (1 + 2 * 0.75), abs=0.02)
    assert np.quantile(whole.activity_R, 0.025) < whole.activity < np.quantile(whole.activity_R, 0.975)
    assert whole.n_samples == 30


def test_thirds_are_the_papers_at_twelve_layers():
    assert phase_of(12).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert set(phase_of(4)) == set(phase_of(7)) == {0, 1, 2}
    with pytest.raises(DataError, match="2 layers"):
        phase_of(2)


def test_models_of_different_depth_agree_on_the_grid():
    np.testing.assert_allclose(on_grid(relative_depth(12)), relative_depth(12))
    inner = slice(2, -2)  # ends are held constant, not extrapolated
    np.testing.assert_allclose(on_grid(relative_depth(4))[inner], relative_depth(12)[inner])


def _units(levels: list[float], noise: float = 0.01, n_seeds: int = 3, depths: tuple[int, ...] = (12, 6)) -> list[Unit]:
    rng, units = np.random.default_rng(0), []
    for depth in depths:
        for seed in range(n_seeds):
            mean = np.array(levels)[phase_of(depth)]
            draws = mean + rng.normal(0, noise, (201, depth))
            units.append(Unit(f"model{depth}", seed, draws[0], draws[1:]))
    return units


def test_planted_phases_are_found_with_their_places():
    found = analyse(_units([0.1, 0.4, 0.7], 0.01), most=3, n_resamples=100, seed=0)
    assert found["anova"]["df_effect"] == 2
    assert found["anova"]["df_error"] == 10
    assert found["anova"]["p_corrected"] < 1e-6
    assert found["concordance"]["w"] == pytest.approx(1)
    assert found["changes"]["model12"]["at"] == [4, 8]
    assert found["changes"]["model12"]["low"] == found["changes"]["model12"]["high"] == [4, 8]
    assert found["changes"]["model12"]["preferred"] == "pieces"
    assert found["changes"]["model6"]["at"] == [2, 4]
    assert found["pooled_changes"]["preferred"] == "pieces"
    np.testing.assert_allclose(found["phase_means"], [0.1, 0.4, 0.7], atol=0.01)


def test_no_phases_are_found_where_there_are_none():
    """By chance pieces are preferred in 1% of such triples of twelve layers (200 draws)."""
    found = analyse(_units([0.3, 0.3, 0.3], 0.05), most=3, n_resamples=50, seed=0)
    assert found["anova"]["p_corrected"] > 0.05
    assert found["changes"]["model12"]["preferred"] != "pieces"


def test_an_exponential_is_told_from_a_line():
    depth = np.linspace(0.35, 0.65, 12)
    exponential = fit_rise(depth, 0.02 * np.exp(9 * depth))
    assert exponential.r2_exponential == pytest.approx(1)
    assert exponential.rate == pytest.approx(9, rel=1e-3)
    assert exponential.r2_line < 0.97
    line = fit_rise(depth, 0.1 + 0.5 * depth)
    assert line.r2_line == pytest.approx(1)
    assert line.r2_exponential < 0.999
    assert np.isnan(fit_rise([0.5, 0.5], [0.1, 0.2]).r2_line)


def test_the_table_has_every_layer_of_every_unit():
    units = _units([0.1, 0.4, 0.7], 0.01)
    table = unit_table(units)
    assert len(table) == 3 * (12 + 6)
    of_one = table[(table["model"] == "model12") & (table["seed"] == 1)]
    means = of_one.groupby("phase")["activity"].mean()
    np.testing.assert_allclose(means, phase_means(units[1]))


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match=r"phases\.seeds=\[1, 1\]"):
        PhasesConfig(seeds=[1, 1])
