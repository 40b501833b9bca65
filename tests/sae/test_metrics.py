"""Metrics against closed forms."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from sklearn.metrics import r2_score

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.metrics import SAEMetrics, evaluate_sae, gini
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser


def test_gini_of_equal_single_and_linear_activations():
    equal, single, silent = torch.full((8,), 3.0), torch.zeros(8), torch.zeros(8)
    single[5] = 2.0
    linear = torch.arange(1.0, 9.0)  # Gini of 1..n is (n² − 1) / (3 n (n + 1)) · … = (n − 1) / (3 n)
    found_B = gini(torch.stack([equal, single, silent, linear]))
    assert found_B.tolist() == pytest.approx([0.0, 1 - 1 / 8, 0.0, 7 / 24])


def test_gini_is_half_the_relative_mean_difference():
    values_BK = torch.rand(3, 30, generator=torch.Generator().manual_seed(0)).double()
    differences_B = (values_BK[:, :, None] - values_BK[:, None]).abs().sum((1, 2))
    torch.testing.assert_close(gini(values_BK), differences_B / (2 * 30 * values_BK.sum(1)))


def summary_of(x_ND, reconstruction_ND, latents_NK, modality_N, batch: int) -> dict[str, float]:
    metrics = SAEMetrics(x_ND.shape[1], latents_NK.shape[1])
    for start in range(0, len(x_ND), batch):
        rows = slice(start, start + batch)
        metrics.update(x_ND[rows], reconstruction_ND[rows], latents_NK[rows], modality_N[rows])
    return metrics.summary()


def example(n: int = 500):
    g = torch.Generator().manual_seed(0)
    modality_N = (torch.arange(n) % 2).to(torch.int8)
    x_ND = torch.randn(n, 4, generator=g) + torch.where(modality_N == 0, 100.0, -100.0)[:, None]
    return x_ND, x_ND + 0.5 * torch.randn(n, 4, generator=g), torch.randn(n, 9, generator=g).relu(), modality_N


def test_fvu_is_the_formula_overall_and_per_modality():
    x_ND, reconstruction_ND, latents_NK, modality_N = example()
    found = summary_of(x_ND, reconstruction_ND, latents_NK, modality_N, batch=64)
    x, error = x_ND.double(), (x_ND.double() - reconstruction_ND.double()).square().sum(1)
    assert found["fvu"] == pytest.approx(float(error.sum() / (x - x.mean(0)).square().sum()), rel=1e-9)
    within = 0.0
    for modality, name in ((0, "visual"), (1, "textual")):
        of = modality_N == modality
        variance = float((x[of] - x[of].mean(0)).square().sum())
        within += variance
        assert found[f"fvu_{name}"] == pytest.approx(float(error[of].sum()) / variance, rel=1e-9)
        r2 = r2_score(x[of], reconstruction_ND[of], multioutput="variance_weighted")
        assert found[f"fvu_{name}"] == pytest.approx(1 - r2, rel=1e-6)
    assert found["fvu_within"] == pytest.approx(float(error.sum()) / within, rel=1e-9)
    assert found["fvu"] < 1e-4 < 0.1 < found["fvu_within"]  # the gap between modalities is no merit
    assert "fvu_joint" not in found


def test_metrics_do_not_depend_on_the_batch_size():
    one, many = summary_of(*example(), batch=500), summary_of(*example(), batch=7)
    single = {name for name in one if name.startswith("mass_gini")}  # summed in float32 within a batch
    assert {name: one[name] for name in one.keys() - single} == pytest.approx(
        {name: many[name] for name in many.keys() - single}, rel=1e-9)
    assert {name: one[name] for name in single} == pytest.approx({name: many[name] for name in single}, rel=1e-5)


def test_mean_and_perfect_reconstructions_are_the_ends_of_the_scale():
    x_ND, _, latents_NK, modality_N = example()
    mean_ND = x_ND.mean(0).expand_as(x_ND)
    assert summary_of(x_ND, mean_ND, latents_NK, modality_N, 50)["fvu"] == pytest.approx(1, rel=1e-6)
    assert summary_of(x_ND, x_ND, latents_NK, modality_N, 50)["fvu"] == 0


def test_activity_is_counted_per_modality():
    latents_NK = torch.tensor([[1.0, 0, 0, 0], [2.0, 1, 0, 0], [0.0, 0, 3, 0]])
    modality_N = torch.tensor([Modality.VISUAL, Modality.VISUAL, Modality.TEXTUAL])
    x_ND = torch.randn(3, 2)
    found = summary_of(x_ND, x_ND, latents_NK, modality_N, batch=2)
    assert (found["l0_visual"], found["l0_textual"]) == (1.5, 1.0)
    assert found["dead_fraction"] == 0.25
    assert (found["dead_fraction_visual"], found["dead_fraction_textual"]) == (0.5, 0.75)


def summed(*parts: SAEMetrics) -> SAEMetrics:
    """Every buffer added, as ranks do."""
    total = SAEMetrics(4, 9)
    for name, buffer in total.named_buffers():
        buffer += sum(part.get_buffer(name) for part in parts)
    return total


def test_ranks_add_up_to_one_process():
    x_ND, reconstruction_ND, latents_NK, modality_N = example()
    whole, first, second = SAEMetrics(4, 9), SAEMetrics(4, 9), SAEMetrics(4, 9)
    for metrics, rows in ((whole, slice(None)), (first, slice(0, 200)), (second, slice(200, None))):
        metrics.update(x_ND[rows], reconstruction_ND[rows], latents_NK[rows], modality_N[rows])
    total = summed(first, second)
    assert total.summary() == pytest.approx(whole.summary(), rel=1e-5)
    assert total.frequency_histogram() == whole.frequency_histogram()
    assert total.dead_fraction_after([3, 70]) == pytest.approx(whole.dead_fraction_after([3, 70]))


def test_the_mass_of_a_dictionary_is_spread_evenly_or_lies_on_one_latent():
    x_ND, modality_N = torch.randn(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    even_NK = torch.eye(3).repeat(2, 1)  # each latent once per modality
    one_NK = torch.tensor([[0.0, 2.0, 0.0]]).expand(6, 3)
    even, one = (summary_of(x_ND, x_ND, latents_NK, modality_N, batch=4) for latents_NK in (even_NK, one_NK))
    for name in ("mass_gini", "mass_gini_visual", "mass_gini_textual"):
        assert even[name] == pytest.approx(0)
        assert one[name] == pytest.approx(1 - 1 / 3)


def metrics_of(fired_NK: torch.Tensor) -> SAEMetrics:
    metrics = SAEMetrics(1, fired_NK.shape[1])
    metrics.update(torch.randn(len(fired_NK), 1), torch.randn(len(fired_NK), 1), fired_NK, torch.zeros(len(fired_NK)))
    return metrics


def test_frequencies_are_counted_by_quarter_decades():
    fired_NK = torch.zeros(1000, 5)
    for latent, n in enumerate((1, 20, 999, 1000)):  # the fifth is dead
        fired_NK[:n, latent] = 1
    found = metrics_of(fired_NK).frequency_histogram()
    assert sum(found["all"]) == 4
    assert found["all"] == found["visual"]
    assert "textual" not in found
    edges = found["log10_edges"]
    occupied = [(edges[index], edges[index + 1]) for index, count in enumerate(found["all"]) if count]
    assert occupied == [(-3.0, -2.75), (-1.75, -1.5), (-0.25, 0.0)]  # log10 of 1/1000, of 1/50, of 0.999 and 1


def test_dead_fraction_by_records_is_the_mean_over_every_subset():
    fired_NK = (torch.rand(8, 5, generator=torch.Generator().manual_seed(1)) < 0.25).float()
    fired_NK[:, 4] = 0
    found = metrics_of(fired_NK).dead_fraction_after(range(1, 9))
    for n, share in zip(range(1, 9), found, strict=True):
        subsets = [float((fired_NK[list(rows)].sum(0) == 0).double().mean()) for rows in combinations(range(8), n)]
        assert share == pytest.approx(sum(subsets) / len(subsets))
    assert found[-1] == metrics_of(fired_NK).summary()["dead_fraction"]
    with pytest.raises(ValueError, match="9 records were asked for and 8 were seen"):
        metrics_of(fired_NK).dead_fraction_after([9])


def test_evaluation_agrees_with_the_model_by_hand(planted):
    reader = TensorReader(planted.acts_ND[:500], planted.modality_N[:500], held_out=0.5)
    sae = build_sae(preset("topk", n_latents=64, k=4), 32, Standardiser.fit(reader))
    batches = list(reader.held_out(100))
    acts_ND, modality_N = torch.cat([b.acts_BD for b in batches]), torch.cat([b.modality_B for b in batches])
    error = (sae(acts_ND, modality_N).reconstruction_BD - acts_ND).square().sum()
    found = evaluate_sae(sae, batches)
    assert found["fvu"] == pytest.approx(float(error.detach() / (acts_ND - acts_ND.mean(0)).square().sum()), rel=1e-4)
    assert found["l0"] <= 4


def test_nothing_to_evaluate_on_is_an_error():
    with pytest.raises(DataError, match="no held-out records"):
        SAEMetrics(2, 2).summary()
