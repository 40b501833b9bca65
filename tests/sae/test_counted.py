"""BatchTopK and Matryoshka against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser

D, K, TOP = 12, 40, 5


def dictionary(arch: str, **config):
    return build_sae(preset(arch, n_latents=K, k=TOP, **config), D, Standardiser.identity((D,)), seed=1)


def batch(n: int, seed: int = 0) -> RecordBatch:
    acts_BD = torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2
    return RecordBatch(acts_BD, (torch.arange(n) % 3 == 0).to(torch.int8), torch.arange(n), torch.zeros(n))


def pre_activations(sae, records: RecordBatch) -> Tensor:
    return (records.acts_BD - sae.b_pre) @ sae.W_enc.T + sae.b_enc


def test_batchtopk_keeps_exactly_n_times_k():
    sae, records = dictionary("batchtopk"), batch(30)
    latents_BK = sae.training_pass(records.acts_BD, None, records).latents.dense()
    pre_BK = pre_activations(sae, records)
    cut = pre_BK.flatten().sort(descending=True).values[30 * TOP - 1]
    assert int((latents_BK > 0).sum()) == 30 * TOP
    torch.testing.assert_close(latents_BK, torch.where(pre_BK >= cut, pre_BK, 0.0))
    assert (latents_BK > 0).sum(1).float().std() > 0  # rich records have more


def test_the_threshold_is_the_moving_mean_of_the_smallest_kept():
    sae = dictionary("batchtopk", threshold_decay=0.75)
    expected = sae.threshold_M.double()
    for seed in range(3):
        records = batch(30, seed)
        smallest = pre_activations(sae, records).flatten().sort(descending=True).values[30 * TOP - 1].double()
        sae.training_pass(records.acts_BD, None, records)
        expected = 0.75 * expected + 0.25 * smallest
    torch.testing.assert_close(sae.threshold_M.double(), expected, rtol=1e-5, atol=1e-6)


def test_outside_training_a_record_does_not_depend_on_its_company():
    sae, records = dictionary("batchtopk"), batch(30)
    sae.training_pass(records.acts_BD, None, records)
    together_BK = sae.encode(records.acts_BD)
    alone_BK = torch.cat([sae.encode(row[None]) for row in records.acts_BD])
    assert torch.equal(together_BK > 0, alone_BK > 0)
    pre_BK = pre_activations(sae, records)
    torch.testing.assert_close(together_BK, torch.where(pre_BK > sae.threshold_M[2], pre_BK, 0.0))


def test_a_silent_batch_leaves_the_threshold():
    sae, records = dictionary("batchtopk"), batch(4)
    before_M = sae.threshold_M.clone()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    assert sae.training_pass(records.acts_BD, None, records).latents.dense().eq(0).all()
    assert torch.equal(sae.threshold_M, before_M)


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "matryoshka"])
def test_adaptive_sparsity_gives_each_modality_its_k(arch):
    sae = dictionary(arch, adaptive_sparsity=True, target_l0_visual=7.0, target_l0_textual=2.0)
    records = batch(30)  # 20 visual, 10 textual
    active_B = (sae.training_pass(records.acts_BD, None, records).latents.dense() > 0).sum(1)
    assert int(active_B[records.modality_B == 0].sum()) == 20 * 7
    assert int(active_B[records.modality_B == 1].sum()) == 10 * 2


def test_matryoshka_prefixes_are_dictionaries_of_their_own():
    sae = dictionary("matryoshka", prefixes=[0.1, 0.5, 1.0], prefix_weights=[3.0, 2.0, 1.0])
    with torch.no_grad():
        sae.b_pre.normal_()
    assert sae.prefix_sizes == [4, 20, 40]
    records = batch(30)
    done = sae.training_pass(records.acts_BD, None, records)
    latents_BK, errors = done.latents.dense(), []
    for size, prefix_BD in zip(sae.prefix_sizes, sae.prefix_reconstructions(done.latents), strict=True):
        expected_BD = latents_BK[:, :size] @ sae.W_dec[:size] + sae.b_pre
        torch.testing.assert_close(prefix_BD, expected_BD)
        errors.append((records.acts_BD - expected_BD).square().sum())
    torch.testing.assert_close(done.reconstruction_BD, latents_BK @ sae.W_dec + sae.b_pre)
    torch.testing.assert_close(done.terms["prefixes"], 3 * errors[0] + 2 * errors[1])


def test_the_coarse_latents_learn_from_every_prefix():
    """The gradient of a latent sums over the prefixes that hold it: of the last group, over one alone."""
    sae = dictionary("matryoshka", prefixes=[0.5, 1.0], prefix_weights=[1.0, 1.0])
    records = batch(30)
    done = sae.training_pass(records.acts_BD, None, records)
    gradient_KD = torch.autograd.grad(done.terms["prefixes"], sae.W_dec, retain_graph=True)[0]
    assert gradient_KD[:20].abs().sum() > 0
    assert gradient_KD[20:].eq(0).all()
