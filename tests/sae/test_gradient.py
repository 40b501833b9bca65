"""How a step's gradient is computed: in parts, in half precision, compiled."""

from __future__ import annotations

import shutil

import pytest
import torch

from cmma.errors import ConfigError
from cmma.sae.architectures.registry import CLASSES, build_sae
from cmma.sae.config import ARCHITECTURES, COUNTED, OptimConfig, preset
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.trainer import Trainer

D, K, B = 12, 40, 50
TERMS = {"lambda1": 0.05, "lambda2": 0.05, "lambda3": 0.05}
WHOLE_BATCH = [arch for arch, kind in CLASSES.items() if kind.whole_batch or kind.reads_pairs]


def batch(seed: int) -> RecordBatch:
    g = torch.Generator().manual_seed(seed)
    return RecordBatch(
        torch.randn(B, D, generator=g) * 2, torch.arange(B).remainder(3).to(torch.int8), torch.arange(B) // 2,
        torch.zeros(B, dtype=torch.int64), torch.randn(B, 2, D, generator=g),
        (torch.rand(B, 4, generator=g) < 0.4).float())


def trainer(arch: str, sae: dict, **optim) -> Trainer:
    config = preset(arch, n_latents=K, k=5, **{"attention": True, "attention_rank": 2, **sae})
    return Trainer(build_sae(config, D, Standardiser.identity((D,)), seed=1),
                   OptimConfig(lr=1e-3, batch=B, steps=12, warmup=0, dead_after=3 * B, resample_every=4, **optim), B, 4)


@pytest.mark.parametrize("terms", [TERMS, {**TERMS, "lambda2": 0.0, "lambda3": 0.0}], ids=["coupled", "additive"])
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in WHOLE_BATCH])
def test_a_batch_in_parts_ends_in_the_weights_of_the_whole(arch, terms):
    """Three parts of 17, 17 and 16 records; dead latents are revived on the way, and λ1 is controlled."""
    sae = {**terms, "adaptive_sparsity": True, "target_l0_visual": 4.0, "target_l0_textual": 2.0}
    whole, parts = trainer(arch, sae), trainer(arch, sae, accumulate=3)
    for step in range(12):
        ours, theirs = (it.advance(batch(step)) for it in (parts, whole))
        torch.testing.assert_close(ours.terms, theirs.terms, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.l0_M, theirs.l0_M)
    state = parts.tensors()
    for name, value in whole.tensors().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("arch", WHOLE_BATCH)
def test_what_needs_the_whole_batch_refuses_parts(arch):
    with pytest.raises(ConfigError, match=f"sae.arch={arch} has to see a whole batch at once; set optim.accumulate=1"):
        trainer(arch, {}, accumulate=2)


def test_more_parts_than_records_are_refused():
    with pytest.raises(ConfigError, match=r"optim\.accumulate=9"):
        OptimConfig(batch=8, accumulate=9)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_half_precision_follows_full_precision(arch):
    """bfloat16 has eight bits: single steps agree to about a percent, and what is kept stays float32."""
    full, half = trainer(arch, TERMS), trainer(arch, TERMS, precision="bfloat16")
    for step in range(8):
        ours, theirs = (it.advance(batch(step)) for it in (half, full))
        torch.testing.assert_close(ours.total, theirs.total, rtol=0.03, atol=0)
    assert all(value.dtype == torch.float32 for value in half.tensors().values() if value.is_floating_point())
    assert not torch.equal(half.sae.W_enc, full.sae.W_enc)
    moved_KD = full.sae.W_enc - trainer(arch, TERMS).sae.W_enc
    assert (half.sae.W_enc - full.sae.W_enc).norm() < 0.3 * moved_KD.norm()


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_pass_computes_the_same():
    plain, compiled = (trainer("msae", {**TERMS, "attention": False}, compile=on) for on in (False, True))
    for step in range(3):
        ours, theirs = (it.advance(batch(step)) for it in (compiled, plain))
        torch.testing.assert_close(ours.terms, theirs.terms, rtol=1e-5, atol=1e-5)
    for name, value in plain.sae.state_dict().items():
        torch.testing.assert_close(compiled.sae.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("arch", COUNTED)
def test_sparse_passes_are_not_compiled(arch):
    with pytest.raises(ConfigError, match=f"not that of sae.arch={arch}"):
        trainer(arch, {}, compile=True)


def test_without_a_compiler_one_line_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*install g\+\+"):
        trainer("msae", {}, compile=True)
