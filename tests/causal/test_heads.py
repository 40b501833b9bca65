"""Heads of CLIP against the model's own embedding, TextSpan on planted heads, SpLiCE on planted sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer

from cmma.causal.config import TraceConfig
from cmma.causal.heads import head_outputs
from cmma.causal.methods.head_text import text_span
from cmma.causal.methods.registry import run_method
from cmma.causal.methods.sparse_concepts import decompose, normalised
from cmma.errors import ConfigError
from cmma.hooks import Edit, TokenEdit, Trace
from cmma.testbed.generate import generate_samples

SAMPLES = list(generate_samples("balanced", 0, 12))


@torch.no_grad()
def test_heads_and_biases_are_the_attention_and_everything_is_the_embedding(tiny_clip):
    """With all else in the last block's stream left out, the heads are what is left: exact by linearity."""
    assert isinstance(tiny_clip.module.visual, VisionTransformer)
    layers = range(4)
    heads_NLHE, rest_NE = head_outputs(tiny_clip, SAMPLES[:5], layers, batch_size=2)
    batch = tiny_clip.collate(SAMPLES[:5])
    sites = [f"vision.layers.{layer}.attn_out" for layer in layers]
    top = "vision.layers.3.resid_post"
    with Trace(tiny_clip, [*sites, top, "vision.embed"]) as acts:
        tiny_clip(**batch)
    torch.testing.assert_close(heads_NLHE.sum((1, 2)) + rest_NE, acts["vision.embed"].flatten(1), rtol=1e-4, atol=1e-5)
    # The same sum by hand: attention outputs of the first token, less their bias, through ln_post's given statistics.
    tower = tiny_clip.module.visual
    summary_BD = acts[top][:, 0]
    deviation_B1 = (summary_BD.var(-1, correction=0, keepdim=True) + tower.ln_post.eps).sqrt()
    for layer, site in enumerate(sites):
        written_BD = acts[site][:, 0] - tower.transformer.resblocks[layer].attn.out_proj.bias
        centred_BD = written_BD - written_BD.mean(-1, keepdim=True)
        by_hand_BE = centred_BD / deviation_B1 * tower.ln_post.weight @ tower.proj
        torch.testing.assert_close(heads_NLHE[:, layer].sum(1), by_hand_BE, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_head_alone_is_what_taking_it_away_takes(tiny_clip):
    """The stream's last write: removing one head's output changes the stream by exactly that head's part."""
    block = tiny_clip.module.visual.transformer.resblocks[3]
    batch = tiny_clip.collate(SAMPLES[:3])
    width = block.attn.out_proj.weight.shape[0] // block.attn.num_heads
    with Trace(tiny_clip, ["vision.layers.3.attn_out"]) as whole:
        tiny_clip(**batch)
    kept = block.attn.out_proj.weight[:, :width].clone()
    block.attn.out_proj.weight[:, :width] = 0
    with Trace(tiny_clip, ["vision.layers.3.attn_out"]) as without:
        tiny_clip(**batch)
    block.attn.out_proj.weight[:, :width] = kept
    from cmma.causal.heads import _written

    with Trace(tiny_clip, ["vision.layers.3.resid_pre"]) as acts:
        tiny_clip(**batch)
    difference_BD = (whole["vision.layers.3.attn_out"] - without["vision.layers.3.attn_out"])[:, 0]
    torch.testing.assert_close(_written(block, acts["vision.layers.3.resid_pre"])[:, 0], difference_BD,
                               rtol=1e-4, atol=1e-6)


def test_text_span_finds_planted_texts_in_the_order_of_their_variance():
    rng = np.random.default_rng(0)
    text_CE = np.linalg.qr(rng.normal(size=(16, 16)))[0][:8]
    strength_N3 = rng.normal(size=(400, 3)) * [1.0, 3.0, 2.0]
    outputs_NE = strength_N3 @ text_CE[[5, 2, 7]] + 4.0  # a constant part is no variance
    found = text_span(outputs_NE, text_CE, n_texts=5)
    assert found.texts == [2, 7, 5]
    assert found.explained[-1] == pytest.approx(1.0)
    assert len(text_span(outputs_NE, text_CE, 5, rank=2).texts) == 2
    total = strength_N3.var(axis=0).sum()
    assert found.explained[0] == pytest.approx(strength_N3[:, 1].var() / total, rel=0.05)


def test_sparse_concepts_solve_the_nonnegative_lasso():
    """The optimum's conditions: the gradient is −λ where a weight is positive and at least −λ where it is zero."""
    rng = np.random.default_rng(1)
    concept_CE, image_NE = (normalised(rng.normal(size=(n, 24))) for n in (40, 5))
    for penalty in (0.05, 0.2):
        weight_NC = decompose(concept_CE, image_NE, penalty)
        gradient_NC = (weight_NC @ concept_CE - image_NE) @ concept_CE.T
        assert (weight_NC >= 0).all()
        assert np.allclose(gradient_NC[weight_NC > 0], -penalty, atol=1e-4)
        assert (gradient_NC >= -penalty - 1e-4).all()


def test_planted_concepts_come_back():
    rng = np.random.default_rng(2)
    concept_CE = np.linalg.qr(rng.normal(size=(32, 32)))[0][:20]
    truth_NC = np.zeros((6, 20))
    for row in truth_NC:
        row[rng.choice(20, 3, replace=False)] = 1.0
    weight_NC = decompose(concept_CE, normalised(truth_NC @ concept_CE), penalty=0.05)
    assert ((weight_NC > 0) == (truth_NC > 0)).all()


def test_both_methods_run_and_name_a_model_that_has_no_shared_space(tiny_clip, tiny):
    for method in ("head_text", "sparse_concepts"):
        config = TraceConfig(method=method, max_samples=6)
        found = run_method(tiny_clip, SAMPLES, config)
        assert found.figures
        assert len(found.tables)
        with pytest.raises(ConfigError, match="dual encoder"):
            run_method(tiny, SAMPLES, config)


def test_edits_reach_the_sum(tiny_clip):
    """What a head of the last layer adds is gone from the embedding's sum when its input is zeroed."""
    zero = TokenEdit(lambda acts_ND, modality_N, where: torch.zeros_like(acts_ND), tokens="every")
    with Edit(tiny_clip, "vision.layers.3.resid_pre", zero):
        heads_NLHE, rest_NE = head_outputs(tiny_clip, SAMPLES[:2], [3])
    assert torch.allclose(heads_NLHE[0], heads_NLHE[1])
    assert torch.allclose(rest_NE[0], rest_NE[1], atol=1e-5)
