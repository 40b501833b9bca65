"""Metrics against closed forms."""

from __future__ import annotations

import pytest
import torch

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
    assert found["fvu_within"] == pytest.approx(float(error.sum()) / within, rel=1e-9)
    assert found["fvu"] < 1e-4 < 0.1 < found["fvu_within"]  # the gap between modalities is no merit
    assert "fvu_joint" not in found


def test_metrics_do_not_depend_on_the_batch_size():
    one, many = summary_of(*example(), batch=500), summary_of(*example(), batch=7)
    assert one == pytest.approx(many, rel=1e-9)


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
