"""The sparse products against dense ones, their gradients, and the sparse training pass against the dense one."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.kernels.kept import Kept
from cmma.sae.kernels.sparse import SparseLatents, gather_dot, gather_sum, scatter_sum
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.trainer import Trainer

SIZES = [(7, 5, 12, 3), (3, 18, 20, 70), (3, 1, 1, 1), (5, 6, 6, 4), (0, 4, 9, 5), (6, 2, 9, 0)]
"""B, k, K, D: more than a tile, one of each, k = K, no records, no columns."""


def codes(n: int, k: int, n_latents: int, dtype: torch.dtype = torch.float64) -> SparseLatents:
    g = torch.Generator().manual_seed(n + k)
    indices_Bk = torch.rand(n, n_latents, generator=g).topk(k, dim=1).indices
    return SparseLatents(torch.randn(n, k, generator=g, dtype=dtype), Kept(indices_Bk, n_latents))


@pytest.fixture(params=["eager", "cuda"])
def backend(request) -> ModuleType:
    """The products of either kind. Triton decides for a whole process whether its interpreter runs the kernels."""
    if request.param == "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("run in a process of its own, by the test below")
    return import_module(f"cmma.sae.kernels.{request.param}")


@pytest.mark.parametrize(("n", "k", "n_latents", "width"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_products_are_the_dense_ones(backend, n, k, n_latents, width, dtype):
    latents = codes(n, k, n_latents, dtype)
    x_BD, weight_KD = torch.randn(n, width, dtype=dtype), torch.randn(n_latents, width, dtype=dtype)
    dense_BK = latents.dense()
    torch.testing.assert_close(backend.gather_sum(*latents, weight_KD), dense_BK @ weight_KD)
    torch.testing.assert_close(backend.scatter_sum(*latents, x_BD), dense_BK.T @ x_BD)
    expected_Bk = (x_BD @ weight_KD.T).gather(1, latents.kept.indices_Bk)
    torch.testing.assert_close(backend.gather_dot(x_BD, latents.kept, weight_KD), expected_Bk)


def test_no_columns_under_several_threads():
    """Data without labels: there embedding_bag fails in PyTorch, from 512 records on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        test_the_products_are_the_dense_ones(import_module("cmma.sae.kernels.eager"), 512, 6, 288, 0, torch.float32)
    finally:
        torch.set_num_threads(threads)


def test_the_triton_kernels_are_right_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is there with PyTorch for CUDA")
    command = ["-m", "pytest", "-k", "the_products_are_the_dense_ones and cuda", "-p", "no:cacheprovider", __file__]
    finished = subprocess.run(
        [sys.executable, *command], env={**os.environ, "TRITON_INTERPRET": "1"}, check=False, capture_output=True,
        text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout[-2000:]
    assert f"{2 * len(SIZES)} passed" in finished.stdout


def test_the_reverse_index_lists_the_records_of_a_latent_in_order():
    kept = Kept(torch.tensor([[3, 0], [0, 1], [3, 1]]), 5)
    assert kept.by_latent.first_K.tolist() == [0, 2, 4, 4, 6, 6]
    assert (kept.by_latent.entry_N // 2).tolist() == [0, 1, 1, 2, 0, 2]


@pytest.mark.parametrize("double", [False, True])
def test_gradients_of_the_products(double):
    latents = codes(3, 2, 6)
    x_BD, weight_KD = (torch.randn(rows, 4, dtype=torch.float64) for rows in (3, 6))
    leaves = [tensor.requires_grad_() for tensor in (latents.values_Bk, x_BD, weight_KD)]

    def products(values_Bk: Tensor, x_BD: Tensor, weight_KD: Tensor) -> tuple[Tensor, ...]:
        codes = SparseLatents(values_Bk, latents.kept)
        return gather_sum(codes, weight_KD), gather_dot(x_BD, weight_KD, latents.kept), scatter_sum(codes, x_BD)

    assert (torch.autograd.gradgradcheck if double else torch.autograd.gradcheck)(products, leaves)


def test_known_dot_products_are_taken_as_they_are_and_have_the_gradient():
    kept, x_BD = codes(3, 2, 6).kept, torch.randn(3, 4)
    weight_KD = torch.randn(6, 4, requires_grad=True)
    known_Bk = torch.randn(3, 2)
    taken_Bk = gather_dot(x_BD, weight_KD, kept, known_Bk)
    assert torch.equal(taken_Bk, known_Bk)
    expected_KD, = torch.autograd.grad(gather_dot(x_BD, weight_KD, kept).square().sum(), weight_KD)
    computed_Bk = gather_dot(x_BD, weight_KD, kept).detach()
    found_KD, = torch.autograd.grad((2 * computed_Bk * taken_Bk).sum(), weight_KD)
    torch.testing.assert_close(found_KD, expected_KD)


def test_the_triton_kernels_compile_for_a_gpu_and_have_no_atomics(monkeypatch, tmp_path):
    triton = pytest.importorskip("triton", reason="Triton is there with PyTorch for CUDA")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cmma.sae.kernels import cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"indices": "*i64", "first_of": "*i64", "entries": "*i64", "n_rows": "i32", "k": "i32", "width": "i32"}
    constants = {"ACC": triton.language.float32, "J": 16, "D": 64}
    for kernel in (cuda._gather_sum, cuda._gather_dot, cuda._scatter_sum):
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
        with warnings.catch_warnings(action="ignore"):  # Triton's own, about defaults of its next release
            compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert "atom" not in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("n", "k", "n_latents", "width"), [*SIZES, (512, 32, 4096, 256)])
def test_the_products_on_a_gpu(n, k, n_latents, width):
    latents = codes(n, k, n_latents, torch.float32)
    on_gpu = SparseLatents(latents.values_Bk.cuda(), Kept(latents.kept.indices_Bk.cuda(), n_latents))
    x_BD, weight_KD = torch.randn(n, width), torch.randn(n_latents, width)
    for found, expected in (
        (gather_sum(on_gpu, weight_KD.cuda()), gather_sum(latents, weight_KD)),
        (scatter_sum(on_gpu, x_BD.cuda()), scatter_sum(latents, x_BD)),
        (gather_dot(x_BD.cuda(), weight_KD.cuda(), on_gpu.kept), gather_dot(x_BD, weight_KD, latents.kept)),
    ):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(scatter_sum(on_gpu, x_BD.cuda()), scatter_sum(on_gpu, x_BD.cuda()))


# --- the training pass ----------------------------------------------------------------------------------------------

D, K = 12, 40
TERMS = {"lambda1": 0.02, "lambda2": 0.05, "lambda3": 0.05}


def batch(n: int, seed: int = 0) -> RecordBatch:
    """Pairs of a visual and a textual record, with labels and context."""
    g = torch.Generator().manual_seed(seed)
    return RecordBatch(
        torch.randn(n, D, generator=g) * 2, torch.arange(n).remainder(2).to(torch.int8), torch.arange(n) // 2,
        torch.zeros(n, dtype=torch.int64), torch.randn(n, 2, D, generator=g),
        (torch.rand(n, 4, generator=g) < 0.4).float())


def trainer(arch: str, dense: bool, **config) -> Trainer:
    settings = {"n_latents": K, "k": 5, "revive": "none", "attention": True, "attention_rank": 2, **TERMS, **config}
    sae = build_sae(preset(arch, **settings), D, Standardiser.identity((D,)), seed=1)
    if dense:  # keep what the architecture keeps, then go on as every dense architecture does
        sae.training_pass = lambda h_BD, context_BCD, batch: SparseAutoencoder.training_pass(
            sae, h_BD, context_BCD, batch)
    return Trainer(sae, OptimConfig(lr=1e-3, batch=48, steps=20, warmup=0), 48, 4)


@pytest.mark.parametrize("arch", ["topk", "separate_matched"])
@pytest.mark.parametrize("config", [
    {}, {"k": K}, {"k": 1}, {"adaptive_sparsity": True, "target_l0_visual": 7.0, "target_l0_textual": 2.0},
], ids=["k=5", "k=K", "k=1", "adaptive"])
def test_sparse_training_ends_where_dense_training_does(arch, config):
    sparse, dense = trainer(arch, dense=False, **config), trainer(arch, dense=True, **config)
    for step in range(20):
        ours, theirs = (it.advance(batch(48, step)) for it in (sparse, dense))
        torch.testing.assert_close(ours.total, theirs.total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.l0_M, theirs.l0_M)
        torch.testing.assert_close(ours.terms, theirs.terms, rtol=1e-4, atol=1e-5)
    for name, value in dense.sae.state_dict().items():
        torch.testing.assert_close(sparse.sae.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("arch", ["topk", "batchtopk", "matryoshka", "sparc", "group_sparse", "separate_matched"])
def test_a_batch_in_which_nothing_is_positive(arch):
    trained = trainer(arch, dense=False)
    with torch.no_grad():
        for name, parameter in trained.sae.named_parameters():
            if name.startswith("b_enc"):
                parameter.fill_(-1000.0)
    losses = trained.advance(batch(48))
    assert losses.l0_M.eq(0).all()
    assert losses.activation_K.eq(0).all()
    assert losses.total.isfinite()
    assert all(parameter.isfinite().all() for parameter in trained.sae.parameters())


def test_an_empty_batch_has_no_latents_and_no_gradient():
    sae, records = trainer("topk", dense=False).sae, batch(48)[:0]
    done = sae.training_pass(records.acts_BD, None, records)
    assert done.latents.dense().shape == (0, K)
    (done.reconstruction_BD.sum() + done.latents.values_Bk.sum()).backward()
    assert sae.W_enc.grad.eq(0).all()
    assert sae.W_dec.grad.eq(0).all()
