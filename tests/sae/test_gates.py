"""Gated and JumpReLU against their papers: forward formulas, straight-through gradients, auxiliary loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from cmma.sae.architectures.jumprelu import Jump, Step
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.mesh import Mesh
from cmma.sae.objective.objective import Objective
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser

D, K = 10, 30


def dictionary(arch: str, **config):
    sae = build_sae(preset(arch, n_latents=K, **config), D, Standardiser.identity((D,)), seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=g) * 0.2)
    return sae


def batch(n: int = 40) -> RecordBatch:
    acts_BD = torch.randn(n, D, generator=torch.Generator().manual_seed(0)) * 2
    return RecordBatch(acts_BD, (torch.arange(n) % 2).to(torch.int8), torch.arange(n), torch.zeros(n))


def gate(sae, h_BD: Tensor) -> Tensor:
    return (h_BD - sae.b_pre) @ sae.W_enc.T + sae.b_enc


def test_jumprelu_is_strict():
    pre_BK = torch.tensor([[0.5, 0.5, -1.0, 2.0]])
    threshold_K = torch.tensor([0.5, 0.4, 0.0, 3.0])
    assert Jump.apply(pre_BK, threshold_K, 0.1).tolist() == [[0.0, 0.5, 0.0, 0.0]]
    assert Step.apply(pre_BK, threshold_K, 0.1).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_straight_through_gradients_are_the_papers():  # arXiv 2407.14435, eq. 11 and 12
    pre_BK = torch.tensor([[1.02, 1.2], [0.99, 1.01], [0.9, 0.96]], requires_grad=True)
    threshold_K = torch.tensor([1.0, 1.0], requires_grad=True)
    upstream_BK = torch.tensor([[2.0, 3.0], [5.0, 7.0], [11.0, 13.0]])
    bandwidth = 0.1  # within 0.05 of θ: rows 0 and 1 of the first latent, rows 1 and 2 of the second
    Jump.apply(pre_BK, threshold_K, bandwidth).backward(upstream_BK)
    torch.testing.assert_close(threshold_K.grad, -(1 / bandwidth) * torch.tensor([2.0 + 5.0, 7.0 + 13.0]))
    assert pre_BK.grad.tolist() == [[2.0, 3.0], [0.0, 7.0], [0.0, 0.0]]
    threshold_K.grad = None
    Step.apply(pre_BK, threshold_K, bandwidth).backward(upstream_BK)
    torch.testing.assert_close(threshold_K.grad, -(1 / bandwidth) * torch.tensor([7.0, 20.0]))


def test_jump_and_step_pass_gradcheck_off_the_kernel():
    """Away from θ both functions are smooth, and the estimate is the true gradient: nothing for θ."""
    g = torch.Generator().manual_seed(0)
    threshold_K = (torch.rand(6, generator=g, dtype=torch.float64) + 0.5).requires_grad_()
    side_BK = torch.where(torch.rand(5, 6, generator=g) < 0.5, -1.0, 1.0)
    pre_BK = (threshold_K.detach() + 0.3 * side_BK).requires_grad_()
    assert gradcheck(lambda pre, threshold: Jump.apply(pre, threshold, 0.1), (pre_BK, threshold_K))
    assert gradcheck(
        lambda pre, threshold: Step.apply(pre, threshold, 0.1).sum() + 0 * pre.sum(), (pre_BK, threshold_K))


def test_the_estimate_is_the_slope_of_the_expectation():
    """For smoothly distributed π, −E[K((π − θ)/ε)]/ε → d/dθ E[1[π > θ]] = −p(θ), here of a uniform density."""
    pre_BK = torch.linspace(0, 2, 100_001)[:, None]  # density ½
    threshold_K = torch.tensor([1.0], requires_grad=True)
    Step.apply(pre_BK, threshold_K, 0.1).mean().backward()
    assert threshold_K.grad.item() == pytest.approx(-0.5, rel=1e-3)


def test_jumprelu_penalties_count_or_soften():
    records = batch()
    for penalty in ("l0", "tanh"):
        sae = dictionary("jumprelu", penalty=penalty, tanh_scale=3.0)
        done = sae.training_pass(records.acts_BD, None, records)
        pre_BK = gate(sae, records.acts_BD)
        active_BK = pre_BK > sae.threshold
        torch.testing.assert_close(done.latents, pre_BK * active_BK)
        expected_B = active_BK.sum(1).float() if penalty == "l0" else (3 * pre_BK * active_BK).tanh().sum(1)
        torch.testing.assert_close(done.sparsity_B, expected_B)


def test_jumprelu_starts_as_sparse_as_asked_and_keeps_thresholds_at_or_above_zero():
    sae = build_sae(preset("jumprelu", n_latents=2000, initial_l0=50.0), 64, Standardiser.identity((64,)))
    assert (sae.encode(torch.randn(500, 64)) > 0).sum(1).float().mean().item() == pytest.approx(50, rel=0.1)
    with torch.no_grad():
        sae.threshold[:5] = -1
    sae.project()
    assert sae.threshold.min() == 0


def test_gated_is_its_equation():  # arXiv 2404.16014, eq. 6 and 7
    sae, records = dictionary("gated"), batch()
    centred_BD = records.acts_BD - sae.b_pre
    opens_BK = centred_BD @ sae.W_enc.T + sae.b_enc > 0
    magnitude_BK = (centred_BD @ (sae.r_mag.exp()[:, None] * sae.W_enc).T + sae.b_mag).relu()
    assert 0.05 < opens_BK.float().mean() < 0.95
    torch.testing.assert_close(sae.encode(records.acts_BD), opens_BK * magnitude_BK, rtol=1e-5, atol=1e-5)


def test_gated_trains_its_gate_by_the_auxiliary_loss_alone():  # eq. 8: the decoder of that term is held fixed
    sae, records = dictionary("gated"), batch()
    done = sae.training_pass(records.acts_BD, None, records)
    open_BK = gate(sae, records.acts_BD).relu()
    torch.testing.assert_close(done.sparsity_B, open_BK.sum(1))
    error = (records.acts_BD - (open_BK @ sae.W_dec + sae.b_pre)).square().sum()
    torch.testing.assert_close(done.terms["gate"], error)
    gradients = torch.autograd.grad(done.terms["gate"], [sae.W_dec, sae.W_enc, sae.b_enc, sae.r_mag],
                                    allow_unused=True, retain_graph=True)
    assert gradients[0] is None
    assert gradients[3] is None
    assert gradients[1].abs().sum() > 0
    through_latents = torch.autograd.grad(done.latents.sum(), [sae.b_enc, sae.b_mag])
    torch.testing.assert_close(through_latents[0], torch.zeros(K), atol=1e-5, rtol=0)  # the step has no gradient
    assert through_latents[1].abs().sum() > 0


@pytest.mark.parametrize("arch", ["gated", "jumprelu"])
def test_lambda1_weighs_the_architectures_own_measure(arch):
    sae, records = dictionary(arch, lambda1=0.7), batch()
    done = sae.training_pass(records.acts_BD, None, records)
    losses = Objective(sae.config, 0, Mesh())(
        records.acts_BD, done.reconstruction_BD, done.latents, records.modality_B, None, done.sparsity_B)
    expected = (records.acts_BD - done.reconstruction_BD).square().sum(1).mean() + 0.7 * done.sparsity_B.mean()
    torch.testing.assert_close(losses.total, expected)
