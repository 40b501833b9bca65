"""Losses and gradients equal SAELens' on shared weights. The import takes seconds: one file, one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.mesh import Mesh
from cmma.sae.objective.objective import Objective
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.dead import auxk_error

D, K, TOP = 16, 48, 6


@pytest.fixture(scope="module")
def peers():
    return pytest.importorskip("sae_lens.saes", reason="SAELens is a development dependency")


def ours(arch: str, **config) -> SparseAutoencoder:
    sae = build_sae(preset(arch, n_latents=K, k=TOP, **config), D, Standardiser.identity((D,)))
    with torch.no_grad():
        g = torch.Generator().manual_seed(5)
        sae.b_pre.copy_(torch.randn(D, generator=g) * 0.3)
        sae.b_enc.copy_(torch.randn(K, generator=g) * 0.2)
        sae.W_enc.add_(torch.randn(K, D, generator=g) * 0.1)
    return sae


def share_weights(sae: SparseAutoencoder, peer) -> None:
    with torch.no_grad():
        peer.W_enc.copy_(sae.W_enc.T)
        peer.W_dec.copy_(sae.W_dec)
        peer.b_enc.copy_(sae.b_enc)
        peer.b_dec.copy_(sae.b_pre)


def their_loss(peers, peer, h_BD: Tensor, dead_K: Tensor | None = None, **coefficients: float) -> Tensor:
    step = peers.sae.TrainStepInput(
        sae_in=h_BD, coefficients=coefficients, dead_neuron_mask=dead_K, n_training_steps=0, is_logging_step=False)
    return peer.training_forward_pass(step).loss


def our_loss(sae: SparseAutoencoder, h_BD: Tensor) -> Tensor:
    n = len(h_BD)
    batch = RecordBatch(h_BD, torch.zeros(n, dtype=torch.int8), torch.arange(n), torch.zeros(n))
    done = sae.training_pass(h_BD, None, batch)
    objective = Objective(sae.config, 0, Mesh())
    return objective(h_BD, done.reconstruction_BD, done.latents, batch.modality_B, None).total


def assert_same_gradients(sae: SparseAutoencoder, peer) -> None:
    torch.testing.assert_close(sae.W_enc.grad.T, peer.W_enc.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.b_enc.grad, peer.b_enc.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.b_pre.grad, peer.b_dec.grad, rtol=1e-5, atol=1e-5)
    # SAELens weighs L1 by the feature's norm, which our features do not have: compare what can turn a feature.
    sae.remove_parallel_gradient()
    theirs_KD = peer.W_dec.grad
    theirs_KD = theirs_KD - (theirs_KD * peer.W_dec).sum(1, keepdim=True) * peer.W_dec
    torch.testing.assert_close(sae.W_dec.grad, theirs_KD.detach(), rtol=1e-5, atol=1e-5)


def records() -> Tensor:
    return torch.randn(64, D, generator=torch.Generator().manual_seed(0))


def test_standard_equals_saelens(peers):
    sae = ours("standard", lambda1=0.05)
    config = peers.standard_sae.StandardTrainingSAEConfig(d_in=D, d_sae=K, apply_b_dec_to_input=True)
    peer = peers.standard_sae.StandardTrainingSAE(config)
    share_weights(sae, peer)
    mine, theirs = our_loss(sae, records()), their_loss(peers, peer, records(), l1=0.05)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    mine.backward()
    theirs.backward()
    assert_same_gradients(sae, peer)


def topk_pair(peers):
    sae = ours("topk")
    config = peers.topk_sae.TopKTrainingSAEConfig(
        d_in=D, d_sae=K, k=TOP, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=False)
    peer = peers.topk_sae.TopKTrainingSAE(config)
    share_weights(sae, peer)
    return sae, peer


def test_topk_equals_saelens(peers):
    sae, peer = topk_pair(peers)
    mine, theirs = our_loss(sae, records()), their_loss(peers, peer, records())
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    mine.backward()
    theirs.backward()
    assert_same_gradients(sae, peer)


def test_auxk_equals_saelens_where_the_dead_are_positive(peers):  # Gao et al. apply ReLU to them, SAELens does not
    sae, peer = topk_pair(peers)
    with torch.no_grad():
        sae.b_enc[-10:] = 9.0  # every record drives the dead latents
        peer.b_enc.copy_(sae.b_enc)
    h_BD, dead_I = records(), torch.arange(K - 10, K)
    dead_K = torch.zeros(K, dtype=torch.bool)
    dead_K[dead_I] = True
    k_aux = D // 2  # SAELens' choice
    theirs = their_loss(peers, peer, h_BD, dead_K) - their_loss(peers, peer, h_BD)
    residual_BD = (h_BD - sae(h_BD).reconstruction_BD).detach()
    mine = auxk_error(sae, h_BD, None, residual_BD, dead_I, k_aux) / len(h_BD)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
    mine.backward()
    alive_K = ~dead_K
    assert sae.W_dec.grad[alive_K].eq(0).all()  # the residual is detached
    assert sae.W_enc.grad[alive_K].eq(0).all()
    assert sae.W_enc.grad[dead_I].abs().sum() > 0
    assert F.cosine_similarity(sae.W_dec.grad[dead_I], sae.W_enc.grad[dead_I]).abs().min() > 0
