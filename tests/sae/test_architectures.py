"""Encoders and decoders against their equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import CLASSES, build_sae
from cmma.sae.config import ARCHITECTURES, preset
from cmma.sae.standardiser import Standardiser

D, K = 6, 20


def dictionary(arch: str, **config) -> SparseAutoencoder:
    sae = build_sae(preset(arch, n_latents=K, **{"k": 4, **config}), D, Standardiser.identity((D,)), seed=1)
    with torch.no_grad():
        sae.b_pre.copy_(torch.randn(sae.b_pre.shape, generator=torch.Generator().manual_seed(2)))
        sae.b_enc.copy_(torch.randn(K, generator=torch.Generator().manual_seed(3)) * 0.3)
    return sae


def records(n: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2


def test_the_registry_has_every_architecture():
    assert {*CLASSES} == {*ARCHITECTURES}


@pytest.mark.parametrize("arch", ["msae", "standard"])
def test_relu_encoder_is_equation_2(arch):
    sae, h_BD = dictionary(arch), records()
    expected_BK = ((h_BD - sae.b_pre) @ sae.W_enc.T + sae.b_enc).clamp(min=0)
    torch.testing.assert_close(sae.encode(h_BD), expected_BK)
    torch.testing.assert_close(sae.decode(expected_BK), expected_BK @ sae.W_dec + sae.b_pre)


def test_topk_keeps_the_k_largest():
    sae, h_BD = dictionary("topk"), records()
    pre_BK = (h_BD - sae.b_pre) @ sae.W_enc.T + sae.b_enc
    threshold_B1 = pre_BK.sort(dim=1, descending=True).values[:, 3:4]
    expected_BK = torch.where(pre_BK >= threshold_B1, pre_BK, 0.0).clamp(min=0)
    torch.testing.assert_close(sae.encode(h_BD), expected_BK)
    assert (sae.encode(h_BD) > 0).sum(1).max() <= 4


def test_bias_folding_gives_the_textbook_gradients():
    sae, h_BD = dictionary("msae"), records()
    sae.encode(h_BD).square().sum().backward()
    folded = [parameter.grad.clone() for parameter in (sae.W_enc, sae.b_enc, sae.b_pre)]
    sae.zero_grad()
    F.linear(h_BD - sae.b_pre, sae.W_enc, sae.b_enc).relu().square().sum().backward()
    for ours, parameter in zip(folded, (sae.W_enc, sae.b_enc, sae.b_pre), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_some_latents_equal_all_latents(arch):
    sae, acts_BD, some_I = dictionary(arch), records(), torch.tensor([2, 11, 19])
    h_BD = sae.standardiser.standardise(acts_BD)
    torch.testing.assert_close(sae.encode_some(h_BD, some_I), sae.encode(acts_BD)[:, some_I])


def test_features_start_with_norm_one_and_the_encoder_as_their_transpose():
    sae = build_sae(preset("msae", n_latents=K), D, Standardiser.identity((D,)))
    torch.testing.assert_close(sae.feature_directions.norm(dim=1), torch.ones(K))
    assert torch.equal(sae.W_enc, sae.W_dec)


def test_a_relu_dictionary_starts_as_sparse_as_asked():
    sae = build_sae(preset("standard", n_latents=2000, initial_l0=50.0), 64, Standardiser.identity((64,)))
    h_BD = torch.randn(500, 64)  # norm about √d
    assert (sae.encode(h_BD) > 0).sum(1).float().mean().item() == pytest.approx(50, rel=0.1)


def test_an_orthonormal_dictionary_of_both_signs_reconstructs_exactly():
    mean_MD, scale_MD = torch.randn(3, D), torch.rand(3, 1).expand(3, D) + 0.5
    sae = build_sae(preset("msae", n_latents=2 * D), D, Standardiser(mean_MD, scale_MD, (D,)))
    with torch.no_grad():
        sae.b_enc.zero_()
        sae.W_dec.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
        sae.W_enc.copy_(sae.W_dec)
    acts_BD, modality_B = records(30), torch.arange(30) % 3
    torch.testing.assert_close(sae(acts_BD, modality_B).reconstruction_BD, acts_BD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(acts_BD).reconstruction_BD, acts_BD, rtol=1e-5, atol=1e-5)


def test_parallel_gradient_cannot_change_a_norm():
    sae = dictionary("msae")
    sae(records()).reconstruction_BD.square().sum().backward()
    sae.remove_parallel_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-4 * sae.W_dec.grad.abs().max()


def test_a_record_of_another_width_is_refused():
    with pytest.raises(DataError, match="width 6, not 5"):
        dictionary("msae").encode(torch.zeros(2, 5))


def with_open_gate(arch: str) -> SparseAutoencoder:
    sae = dictionary(arch, attention=True, attention_rank=3)
    with torch.no_grad():
        sae.attention.gate.fill_(0.7)
    return sae


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attention_is_off_to_the_bit_until_its_gate_opens(arch):
    h_BD, context_BCD = records(), records(9 * 4, seed=5).view(9, 4, D)
    modality_B = torch.arange(9) % 2
    plain, gated = dictionary(arch), dictionary(arch, attention=True)
    assert torch.equal(gated.encode(h_BD, modality_B, context_BCD), plain.encode(h_BD, modality_B))
    assert not torch.equal(with_open_gate(arch).encode(h_BD, modality_B, context_BCD), plain.encode(h_BD, modality_B))


def test_attention_is_softmax_attention():
    sae = with_open_gate("msae")
    h_BD, context_BCD = records(), records(9 * 4, seed=5).view(9, 4, D)
    head = sae.attention
    attended_B1R = F.scaled_dot_product_attention(
        (h_BD @ head.query.T)[:, None], context_BCD @ head.key.T, context_BCD @ head.value.T)
    expected_BD = h_BD + 0.7 * attended_B1R[:, 0] @ head.out.T
    torch.testing.assert_close(head(h_BD, context_BCD), expected_BD)


def test_context_is_standardised_as_the_other_modality_and_absent_for_joint_views():
    sae = with_open_gate("msae")
    sae.standardiser = Standardiser(torch.tensor([[1.0], [2.0], [5.0]]).expand(3, D), torch.ones(3, D), (D,))
    context_BCD = torch.full((3, 2, D), 2.0)
    modality_B = torch.tensor([Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT], dtype=torch.int8)
    standard_BCD = sae.standardise_context(context_BCD, modality_B)
    assert [float(standard_BCD[row, 0, 0]) for row in range(3)] == [0.0, 1.0, 0.0]
