"""The training loop: schedule, invariants, dead latents, early stopping, recovery of planted atoms."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from cmma.errors import DataError
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.metrics import evaluate_sae
from cmma.sae.records import TensorReader, generator
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.dead import DeadLatents, auxk_error, resample
from cmma.sae.training.loop import train
from cmma.sae.training.trainer import Trainer, learning_rate


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    config = OptimConfig(lr=1.0, warmup=10)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("arch", ["msae", "topk"])
def test_features_keep_norm_one(planted, arch):
    reader = planted.reader()
    sae = build_sae(preset(arch, n_latents=64, k=4), 32, Standardiser.fit(reader))
    trainer = Trainer(sae, OptimConfig(lr=1e-2, batch=64, steps=8, warmup=0), reader.n_records, reader.n_labels)
    before_KD = sae.feature_directions.clone()
    for batch in islice(reader.batches(64, 0), 8):
        trainer.advance(batch)
    torch.testing.assert_close(sae.feature_directions.norm(dim=1), torch.ones(64))
    assert not torch.allclose(sae.feature_directions, before_KD, atol=1e-3)


def test_silence_is_counted_in_records():
    dead = DeadLatents(n_latents=3, dead_after=100)
    dead.update(torch.tensor([True, False, False]), 60)
    dead.update(torch.tensor([False, False, True]), 60)
    assert dead.silent_K.tolist() == [60, 120, 0]
    assert dead.indices().tolist() == [1]


def test_auxk_reconstructs_the_residual_with_dead_latents_alone():
    torch.manual_seed(0)
    sae = build_sae(preset("topk", n_latents=20, k=2), 5, Standardiser.identity((5,)))
    h_BD, dead_I = torch.randn(7, 5), torch.tensor([3, 8, 12, 15])
    residual_BD = torch.randn(7, 5)
    pre_BI = h_BD @ sae.W_enc[dead_I].T
    strongest_BI = torch.where(pre_BI >= pre_BI.sort(dim=1).values[:, -2:-1], pre_BI, 0.0).clamp(min=0)
    expected = (residual_BD - strongest_BI @ sae.W_dec[dead_I]).square().sum()
    error = auxk_error(sae, h_BD, None, residual_BD, dead_I, k=2)
    torch.testing.assert_close(error, expected)
    error.backward()
    assert sorted(sae.W_dec.grad.abs().sum(1).nonzero()[:, 0].tolist()) == dead_I.tolist()


def test_a_resampled_latent_points_at_the_worst_record():
    sae = build_sae(preset("standard", n_latents=20), 5, Standardiser.identity((5,)))
    optimiser = torch.optim.Adam(sae.parameters())
    sae(torch.randn(8, 5)).reconstruction_BD.sum().backward()
    optimiser.step()
    residual_BD = torch.zeros(8, 5)
    residual_BD[6] = torch.tensor([0.0, 3.0, 0.0, -4.0, 0.0])
    dead_I = torch.tensor([2, 9])
    n = resample(sae, optimiser, residual_BD, dead_I, generator("test"))
    assert n == 1  # only one record is badly reconstructed
    torch.testing.assert_close(sae.feature_directions[2], F.normalize(residual_BD[6], dim=0))
    others = torch.arange(20) != 2
    assert sae.W_enc[2].norm().item() == pytest.approx(0.2 * sae.W_enc[others].norm(dim=1).mean().item(), rel=1e-5)
    assert optimiser.state[sae.W_enc]["exp_avg_sq"][2].eq(0).all()
    assert optimiser.state[sae.W_enc]["exp_avg_sq"][3].gt(0).any()


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    reader = TensorReader(torch.randn(400, 8))
    sae = build_sae(preset("topk", n_latents=16, k=1), 8, Standardiser.fit(reader))
    config = OptimConfig(lr=1e-12, warmup=0, batch=50, steps=100, evaluate_every=5, patience=2)
    result = train(sae, reader, config, tmp_path)
    assert result.stopped_early
    assert result.steps < 100


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, planted):
    reader = planted.reader()
    sae = build_sae(preset("msae", n_latents=16), 32, Standardiser.fit(reader))
    with torch.no_grad():
        sae.b_pre.fill_(float("inf"))
    with pytest.raises(DataError, match="not finite at step 1"):
        train(sae, reader, OptimConfig(batch=64, steps=5, log_every=1), tmp_path)


def recovered(planted, sae) -> float:
    """Share of planted atoms with a feature at cosine ≥ 0.9. The scale is scalar, so directions are kept."""
    return float(((planted.atoms_AD @ sae.feature_directions.T).amax(1) >= 0.9).float().mean())


def test_planted_atoms_are_recovered_by_topk(planted, tmp_path):
    reader = planted.reader()
    sae = build_sae(preset("topk", n_latents=128, k=4), 32, Standardiser.fit(reader))
    assert recovered(planted, sae) < 0.1
    train(sae, reader, OptimConfig(lr=5e-3, batch=512, steps=400, warmup=20, evaluate_every=400), tmp_path)
    found = evaluate_sae(sae, reader.held_out(500))
    assert recovered(planted, sae) >= 0.95
    assert found["fvu_within"] < 0.15


def test_planted_atoms_are_recovered_at_the_target_sparsity(planted, tmp_path):
    """M-SAE with every term; the controller finds λ1 of each modality. An average record has 2 atoms."""
    reader = planted.reader()
    config = preset("msae", n_latents=128, initial_l0=8.0, lambda1=1.0, lambda2=0.02, lambda3=0.01,
                    adaptive_sparsity=True, target_l0_visual=4.0, target_l0_textual=4.0)
    sae = build_sae(config, 32, Standardiser.fit(reader))
    train(sae, reader, OptimConfig(lr=5e-3, batch=512, steps=500, warmup=20, evaluate_every=500), tmp_path)
    found = evaluate_sae(sae, reader.held_out(500))
    assert recovered(planted, sae) >= 0.9
    assert found["l0_visual"] == pytest.approx(4, rel=0.25)
    assert found["l0_textual"] == pytest.approx(4, rel=0.25)
