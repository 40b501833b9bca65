"""Dictionaries that SAELens itself builds, saves and loads. The import takes seconds: one file, one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmma.sae import load_sae, save_saelens
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser

D, K, TOP = 16, 64, 6


@pytest.fixture(scope="module")
def saes():
    return pytest.importorskip("sae_lens.saes", reason="SAELens is a development dependency")


def records() -> Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(0)) * 2 + 0.3


@torch.no_grad()
def unsettle(module: torch.nn.Module) -> None:
    """Away from the initial values, where biases are zero and encoders are transposed decoders."""
    g = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if name == "threshold":
            parameter.copy_(torch.rand(parameter.shape, generator=g))
        else:
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)


def assert_loads_alike(folder: Path, peer) -> None:
    with torch.no_grad():
        theirs_NK = peer.encode(records()).to_dense()
        reconstruction_ND = peer.decode(peer.encode(records()))
        sae = load_sae(folder)
        ours_NK = sae.encode(records())
        torch.testing.assert_close(ours_NK, theirs_NK, atol=1e-4, rtol=0)
        torch.testing.assert_close(sae.decode(ours_NK), reconstruction_ND, atol=1e-4, rtol=0)
    assert torch.equal(ours_NK > 0, theirs_NK > 0)
    assert 0 < (ours_NK > 0).float().mean() < 1


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk"])
def test_inference_saves(saes, tmp_path, kind, subtract):
    module, name = {
        "standard": (saes.standard_sae, "StandardSAE"), "gated": (saes.gated_sae, "GatedSAE"),
        "jumprelu": (saes.jumprelu_sae, "JumpReLUSAE"), "topk": (saes.topk_sae, "TopKSAE"),
    }[kind]
    options = {"k": TOP} if kind == "topk" else {}
    config = getattr(module, f"{name}Config")(d_in=D, d_sae=K, apply_b_dec_to_input=subtract, **options)
    peer = getattr(module, name)(config)
    unsettle(peer)
    peer.save_model(tmp_path)
    assert_loads_alike(tmp_path, peer)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_topk_rescaled_by_decoder_norms(saes, tmp_path, rescale, folded):
    """`save_inference_model` folds the norms and leaves the flag, `save_model` does not fold: both mean the same."""
    config = saes.topk_sae.TopKTrainingSAEConfig(d_in=D, d_sae=K, k=TOP, rescale_acts_by_decoder_norm=rescale)
    peer = saes.topk_sae.TopKTrainingSAE(config)
    unsettle(peer)
    (peer.save_inference_model if folded else peer.save_model)(tmp_path)
    assert_loads_alike(tmp_path, peer)


@pytest.mark.parametrize("rescale", [True, False])
def test_batchtopk_is_its_inference_export(saes, tmp_path, rescale):
    """A checkpoint says batchtopk, the export jumprelu with one threshold; the export is what SAELens encodes with."""
    config = saes.batchtopk_sae.BatchTopKTrainingSAEConfig(
        d_in=D, d_sae=K, k=TOP, rescale_acts_by_decoder_norm=rescale)
    peer = saes.batchtopk_sae.BatchTopKTrainingSAE(config)
    unsettle(peer)
    peer.topk_threshold.fill_(0.9)
    peer.save_model(tmp_path / "checkpoint")
    peer.save_inference_model(tmp_path / "export")
    exported = saes.sae.SAE.load_from_disk(tmp_path / "export")
    assert load_sae(tmp_path / "checkpoint").config.arch == "batchtopk"
    assert load_sae(tmp_path / "export").config.arch == "jumprelu"
    assert_loads_alike(tmp_path / "export", exported)
    assert_loads_alike(tmp_path / "checkpoint", exported)


@pytest.mark.parametrize("arch", ["msae", "gated", "jumprelu", "topk", "batchtopk"])
def test_saelens_reads_what_we_write(saes, tmp_path, arch):
    mean_D = torch.linspace(-1, 1, D)
    standardiser = Standardiser(mean_D.expand(3, D), torch.full((3, D), 1.7), (D,))
    sae = build_sae(preset(arch, n_latents=K, k=TOP), D, standardiser, seed=1)
    with torch.no_grad():
        g = torch.Generator().manual_seed(2)
        for parameter in sae.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=g) * 0.1)
        save_saelens(sae, tmp_path)
        peer = saes.sae.SAE.load_from_disk(tmp_path)
        ours_NK, theirs_NK = sae.encode(records()), peer.encode(records()).to_dense()
        torch.testing.assert_close(theirs_NK, ours_NK, atol=1e-4, rtol=0)
        torch.testing.assert_close(peer.decode(theirs_NK), sae.decode(ours_NK), atol=1e-4, rtol=0)
    assert torch.equal(theirs_NK > 0, ours_NK > 0)


@pytest.mark.parametrize("mode", ["step", "tanh"])
def test_jumprelu_loss_and_gradients(saes, mode):
    """The straight-through estimate, on shared weights. DeepMind's sends nothing to the encoder."""
    sae = build_sae(preset("jumprelu", n_latents=K, lambda1=0.3, bandwidth=0.4, penalty={"step": "l0"}.get(mode, mode)),
                    D, Standardiser.identity((D,)), seed=1)
    config = saes.jumprelu_sae.JumpReLUTrainingSAEConfig(
        d_in=D, d_sae=K, jumprelu_bandwidth=0.4, jumprelu_sparsity_loss_mode=mode)
    peer = saes.jumprelu_sae.JumpReLUTrainingSAE(config)
    share(saes, sae, peer, {"threshold": "threshold"})
    assert_same_step(saes, sae, peer, {"l0": 0.3}, {"threshold": "threshold"})


def test_gated_loss_and_gradients(saes):
    """SAELens lets the auxiliary term move the decoder, the paper does not: gate and magnitudes are compared."""
    sae = build_sae(preset("gated", n_latents=K, lambda1=0.3), D, Standardiser.identity((D,)), seed=1)
    peer = saes.gated_sae.GatedTrainingSAE(saes.gated_sae.GatedTrainingSAEConfig(d_in=D, d_sae=K))
    names = {"r_mag": "r_mag", "b_mag": "b_mag"}
    share(saes, sae, peer, names, bias="b_gate")
    assert_same_step(saes, sae, peer, {"l1": 0.3}, names, bias="b_gate", decoder=False)


@torch.no_grad()
def share(saes, sae, peer, names: dict[str, str], bias: str = "b_enc") -> None:
    g = torch.Generator().manual_seed(3)
    sae.b_pre.copy_(torch.randn(D, generator=g) * 0.3)
    sae.W_enc.add_(torch.randn(K, D, generator=g) * 0.1)
    if hasattr(sae, "threshold"):
        sae.threshold.copy_(torch.rand(K, generator=g) + 0.3)
    for ours, theirs in ((sae.W_enc.T, peer.W_enc), (sae.W_dec, peer.W_dec), (sae.b_pre, peer.b_dec),
                         (sae.b_enc, getattr(peer, bias))):
        theirs.copy_(ours)
    for name, other in names.items():
        getattr(peer, other).copy_(getattr(sae, name))


def assert_same_step(
    saes, sae, peer, coefficients: dict[str, float], names: dict[str, str], bias: str = "b_enc", decoder: bool = True
) -> None:
    from cmma.sae.mesh import Mesh
    from cmma.sae.objective.objective import Objective
    from cmma.sae.records import RecordBatch

    h_BD = records()
    batch = RecordBatch(h_BD, torch.zeros(len(h_BD), dtype=torch.int8), torch.arange(len(h_BD)), torch.zeros(len(h_BD)))
    done = sae.training_pass(h_BD, None, batch)
    total = Objective(sae.config, 0, Mesh())(
        h_BD, done.reconstruction_BD, done.latents, batch.modality_B, None, done.sparsity_B).total
    total = total + sum(done.terms.values()) / len(h_BD)
    total.backward()
    step = saes.sae.TrainStepInput(
        sae_in=h_BD, coefficients=coefficients, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)
    theirs = peer.training_forward_pass(step).loss
    theirs.backward()
    torch.testing.assert_close(total, theirs, rtol=1e-5, atol=1e-5)
    pairs = [(sae.W_enc.grad.T, peer.W_enc.grad), (sae.b_enc.grad, getattr(peer, bias).grad)]
    pairs += [(getattr(sae, name).grad, getattr(peer, other).grad) for name, other in names.items()]
    if decoder:
        pairs.append((sae.b_pre.grad, peer.b_dec.grad))
        sae.remove_parallel_gradient()  # SAELens weighs sparsity by the feature's norm, which ours do not have
        theirs_KD = peer.W_dec.grad
        theirs_KD = theirs_KD - (theirs_KD * peer.W_dec).sum(1, keepdim=True) * peer.W_dec
        pairs.append((sae.W_dec.grad, theirs_KD.detach()))
    for ours, other in pairs:
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=2e-5)
