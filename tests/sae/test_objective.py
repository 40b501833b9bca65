"""The objective's terms against their definitions (paper, Eq. 3-6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from cmma.modality import Modality
from cmma.sae.config import preset
from cmma.sae.mesh import Mesh
from cmma.sae.objective import statistics
from cmma.sae.objective.information import label_distribution, mutual_information, soft_indicator
from cmma.sae.objective.losses import alignment, cross_penalty
from cmma.sae.objective.objective import Objective
from cmma.sae.objective.selectivity import Selectivity, selectivity
from cmma.sae.objective.statistics import Conditions, MovingSums, Sums, latent_sums, relu_and_sums


def latents(n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=dtype).relu()


# --- Eq. 5 ----------------------------------------------------------------------------------------------------------

def test_balanced_selectivities_sum_to_two():  # E[a | any] is the mean of the two modality means
    visual_K, textual_K = latents(2, 50).add(0.01)
    found = selectivity(visual_K, textual_K)
    torch.testing.assert_close(found.visual_K + found.textual_K, torch.full((50,), 2.0))
    assert (found.product_K >= 0).all()
    assert (found.product_K <= 1 + 1e-6).all()


def test_empirical_weights_are_the_shares_of_the_records():
    found = selectivity(torch.tensor([2.0]), torch.tensor([1.0]), visual_share=0.9)  # E[a | any] = 1.9
    assert found.visual_K.item() == pytest.approx(2 / 1.9)
    assert found.textual_K.item() == pytest.approx(1 / 1.9)


def test_a_silent_latent_has_no_selectivity_and_no_gradient():
    mean_MK = torch.zeros(2, 3, requires_grad=True)
    product_K = selectivity(mean_MK[0], mean_MK[1]).product_K
    product_K.sum().backward()
    assert product_K.eq(0).all()
    assert mean_MK.grad.eq(0).all()


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_selectivity_gradient(share):
    visual_K, textual_K = latents(2, 6, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, t: selectivity(v, t, share).product_K, (visual_K, textual_K))


# --- sums and their moving averages ---------------------------------------------------------------------------------

def by(n: int, n_labels: int, dtype: torch.dtype = torch.float32) -> Conditions:
    return Conditions(torch.eye(3, dtype=dtype)[torch.arange(n) % 3], torch.rand(n, n_labels, dtype=dtype), 0.2)


@pytest.fixture
def small_groups(monkeypatch):
    """Groups of 64 columns."""
    monkeypatch.setitem(statistics._GROUP, "cpu", 1)


@pytest.mark.parametrize("n_labels", [0, 3])
@pytest.mark.usefixtures("small_groups")
def test_latent_sums_gradient_across_column_groups(n_labels):
    latents_BK = latents(3, 70, dtype=torch.float64).add(0.05).requires_grad_()
    conditions = by(3, n_labels, torch.float64)
    assert torch.autograd.gradcheck(lambda a_BK: latent_sums(a_BK, conditions)[:2], (latents_BK,))


@pytest.mark.parametrize("n_labels", [0, 3])
@pytest.mark.usefixtures("small_groups")
def test_relu_and_sums_gradient_across_column_groups(n_labels):
    pre_BK = torch.randn(3, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pre_BK = (pre_BK + 0.05 * pre_BK.sign()).requires_grad_()  # away from the kink
    conditions = by(3, n_labels, torch.float64)

    def products(x_BK: Tensor) -> tuple[Tensor, ...]:
        latents_BK, sums = relu_and_sums(x_BK.clone(), conditions)
        return latents_BK * 2, *sums[:2]  # the gradient of a product is a new tensor

    assert torch.autograd.gradcheck(products, (pre_BK,))


def test_latent_sums_are_the_plain_products():
    latents_BK, conditions = latents(40, 70), by(40, 4)
    before_BK = latents_BK.clone()
    sums = latent_sums(latents_BK, conditions)
    torch.testing.assert_close(sums.activation_MK, conditions.one_hot_BM.T @ latents_BK)
    torch.testing.assert_close(sums.joint_LK, conditions.label_BL.T @ soft_indicator(latents_BK, 0.2))
    assert torch.equal(sums.active_B, (latents_BK > 0).sum(1).float())
    assert torch.equal(latents_BK, before_BK)
    rectified_BK, same = relu_and_sums(latents_BK.where(latents_BK > 0, -1.0), conditions)
    assert torch.equal(rectified_BK, before_BK)
    assert all(torch.equal(one, other) for one, other in zip(sums, same, strict=True))


def test_moving_sums_are_means_weighted_by_age():
    moving = MovingSums(n_latents=1, n_labels=0, decay=0.5)
    def batch(total: float, count: float) -> Sums:
        return Sums(torch.tensor([[total], [0.0]]), torch.tensor([count, 0.0]), torch.zeros(0, 1), torch.zeros(0))
    for total, count in ((8.0, 4.0), (0.0, 0.0), (6.0, 1.0)):  # the second batch has no visual record
        sums = moving.advance(batch(total, count))
    assert sums.activation_MK[0, 0].item() == 8 * 0.25 + 6
    assert sums.count_M.tolist() == [4 * 0.25 + 1, 0.0]


# --- Eq. 4 and 6 ----------------------------------------------------------------------------------------------------

def test_cross_penalty_is_a_hinge():
    found = Selectivity(torch.tensor([2.0, 1.0, 1.9]), torch.tensor([0.0, 1.0, 0.1]))  # products 0, 1, 0.19
    assert cross_penalty(found, tau=0.1).item() == pytest.approx(0.9 + 0.09)
    assert cross_penalty(found, tau=0.1, reduction="mean").item() == pytest.approx(0.99 / 3)


def test_alignment_rewards_the_information_of_cross_modal_latents_only():
    found = Selectivity(torch.tensor([2.0, 1.0, 1.9]), torch.tensor([0.0, 1.0, 0.1]))
    assert alignment(found, torch.tensor([5.0, 0.3, 0.2]), tau=0.1).item() == pytest.approx(-0.5)


def exact_information(active_N: np.ndarray, label_N: np.ndarray) -> float:
    """Σ p(b, y) ln p(b, y) / (p(b) p(y)), by counting."""
    total = 0.0
    for b in np.unique(active_N):
        for y in np.unique(label_N):
            joint = np.mean((active_N == b) & (label_N == y))
            if joint:
                total += joint * math.log(joint / (np.mean(active_N == b) * np.mean(label_N == y)))
    return total


def test_information_is_exact_for_hard_activations():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 5, 4000)
    active_NK = rng.random((4000, 6)) < 0.1 + 0.15 * (label_N[:, None] == np.arange(6))
    labels_NL = torch.eye(5)[torch.from_numpy(label_N)]
    distribution_NL = label_distribution(labels_NL, torch.ones(4000))
    found_K = mutual_information(distribution_NL.T @ torch.from_numpy(active_NK).float(), distribution_NL.sum(0))
    for k in range(6):
        assert found_K[k].item() == pytest.approx(exact_information(active_NK[:, k], label_N), abs=2e-6)
        assert found_K[k].item() == pytest.approx(mutual_info_score(active_NK[:, k], label_N), abs=2e-6)


def test_soft_information_tends_to_the_hard_one():
    latents_NK = latents(3000, 4)
    label_N = (latents_NK[:, 0] > 0.7).long() + (latents_NK[:, 1] > 0).long()
    labels_NL = torch.eye(3)[label_N]
    hard = mutual_info_score((latents_NK[:, 1] > 0).numpy(), label_N.numpy())
    gaps = []
    for temperature in (0.3, 0.03, 1e-6):
        joint_LK = labels_NL.T @ soft_indicator(latents_NK, temperature)
        gaps.append(abs(mutual_information(joint_LK, labels_NL.sum(0))[1].item() - hard))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-5


def test_information_has_its_known_extremes():
    labels_NL = torch.eye(2)[torch.arange(1000) % 2]
    copy_N, noise_N = labels_NL[:, 0], torch.arange(1000) // 2 % 2  # noise is exactly independent of the label
    active_NK = torch.stack([copy_N, 1 - copy_N, noise_N.float(), torch.zeros(1000), torch.ones(1000)], dim=1)
    found_K = mutual_information(labels_NL.T @ active_NK, labels_NL.sum(0))
    torch.testing.assert_close(found_K, torch.tensor([math.log(2), math.log(2), 0.0, 0.0, 0.0]), atol=1e-6, rtol=1e-6)


def test_several_labels_share_a_records_mass():
    labels_BL = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found_BL = label_distribution(labels_BL, counted_B=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert found_BL.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_information_gradient():
    labels_BL = torch.eye(3, dtype=torch.float64)[torch.arange(12) % 3]
    latents_BK = latents(12, 4, dtype=torch.float64).add(0.05).requires_grad_()
    def information(a_BK: Tensor) -> Tensor:
        return mutual_information(labels_BL.T @ soft_indicator(a_BK, 0.2), labels_BL.sum(0))
    assert torch.autograd.gradcheck(information, (latents_BK,))


# --- the whole objective --------------------------------------------------------------------------------------------

def batch(n: int = 60, k: int = 30, d: int = 5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "h_BD": torch.randn(n, d, generator=g), "reconstruction_BD": torch.randn(n, d, generator=g),
        "latents": latents(n, k), "modality_B": (torch.arange(n) % 3).to(torch.int8),
        "labels_BL": (torch.rand(n, 4, generator=g) < 0.4).float(),
    }


def test_the_loss_is_equation_3():
    config = preset("msae", n_latents=30, lambda1=0.1, lambda2=0.02, lambda3=0.03, tau=0.2)
    inputs = batch()
    losses = Objective(config, 4, Mesh())(**inputs)

    a, m = inputs["latents"], inputs["modality_B"]
    error = (inputs["h_BD"] - inputs["reconstruction_BD"]).square().sum(1).mean()
    visual_K, textual_K = a[m == Modality.VISUAL].mean(0), a[m == Modality.TEXTUAL].mean(0)
    product_K = 4 * visual_K * textual_K / (visual_K + textual_K) ** 2
    single = m != Modality.JOINT
    mass = inputs["labels_BL"][single] / inputs["labels_BL"][single].sum(1, keepdim=True).clamp(min=1)
    information_K = mutual_information(mass.T @ (a[single] / (a[single] + 0.1)), mass.sum(0))
    expected = (error + 0.1 * a.sum(1).mean() + 0.02 * (product_K - 0.2).clamp(min=0).sum()
                - 0.03 * information_K[product_K > 0.2].sum())
    torch.testing.assert_close(losses.total, expected)


def test_joint_views_do_not_touch_selectivity():
    config, inputs = preset("msae", n_latents=30), batch()
    changed = inputs["latents"].clone()
    changed[inputs["modality_B"] == Modality.JOINT] *= 5
    one = Objective(config, 4, Mesh())(**inputs)
    other = Objective(config, 4, Mesh())(**{**inputs, "latents": changed})
    assert torch.equal(one.terms["cross"], other.terms["cross"])
    assert torch.equal(one.terms["align"], other.terms["align"])
    assert one.terms["l1"] < other.terms["l1"]


def test_without_weights_the_cross_modal_terms_leave_no_gradient():
    inputs = batch()
    inputs["latents"].requires_grad_()
    objective = Objective(preset("topk", n_latents=30, k=3), 4, Mesh())
    objective(**inputs).total.backward()
    assert inputs["latents"].grad.eq(0).all()


def test_the_controller_raises_the_price_of_the_denser_modality():
    inputs = batch()
    inputs["latents"][inputs["modality_B"] == Modality.TEXTUAL, 3:] = 0  # at most 3 active, against about 15
    config = preset("msae", n_latents=30, adaptive_sparsity=True, target_l0_visual=6.0, target_l0_textual=6.0)
    objective = Objective(config, 0, Mesh())
    losses = objective(**{**inputs, "labels_BL": None})
    assert losses.l0_M[Modality.VISUAL] > 6 > losses.l0_M[Modality.TEXTUAL]
    assert objective.lambda1_M[Modality.VISUAL] > config.lambda1 > objective.lambda1_M[Modality.TEXTUAL]
