"""Edge attribution against patched edges, and where edges must add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cmma.causal.corruptions import contrast_runs
from cmma.causal.edges import edge_effects, edge_estimates, stream_edges
from cmma.causal.node_attribution import patch_estimates
from cmma.causal.queries import caption_pair_contrasts, image_pair_contrasts
from cmma.causal.readout import AnswerReadout, CosineReadout
from cmma.errors import ConfigError
from cmma.models import load_model
from cmma.models.spec import ModelSpec


@pytest.fixture(scope="module")
def runs(tiny, pairs):
    contrasts = [each for each in image_pair_contrasts(pairs) if each.clean.answer[0] != each.clean.other[0]]
    return contrast_runs(tiny, contrasts[0])


@pytest.fixture(scope="module")
def readout(tiny):
    return AnswerReadout(tiny, "logit_difference")


def test_edges_are_the_pairs_in_order(tiny):
    """Four blocks of two modules behind the input: module j is read by every later one and by the output."""
    edges = stream_edges(tiny, "language")
    assert edges.before_ST.shape == (9, 9)
    assert edges.before_ST.sum() == 9 * 10 // 2
    names = [(list(edges.sources)[s], list(edges.targets)[t]) for s, t in np.argwhere(edges.before_ST)]
    assert ("attention 2", "mlp 2") in names
    assert ("mlp 2", "attention 3") in names
    assert ("mlp 2", "mlp 2") not in names
    assert ("mlp 3", "output") in names


def test_what_a_source_says_to_all_is_its_node(tiny, runs, readout):
    """The derivative by a module's output is the sum of those along everything that reads it."""
    edges = stream_edges(tiny, "language")
    found_ST = edge_estimates(tiny, *runs, edges, readout)
    everything = {"all": torch.arange(runs[0].batch["input_ids"].shape[1])}
    nodes = patch_estimates(tiny, *runs, edges.sources, everything, readout)[:, 0]
    np.testing.assert_allclose(np.nansum(found_ST, axis=1), nodes, atol=1e-5)
    assert np.abs(nodes).max() > 1e-3


def test_estimates_rank_edges_like_patching(tiny, runs, readout):
    edges = stream_edges(tiny, "language")
    exact_ST = edge_effects(tiny, *runs, edges, readout, rows_per_forward=10)
    for steps in (1, 8):
        found_ST = edge_estimates(tiny, *runs, edges, readout, steps)
        kept = edges.before_ST
        assert spearmanr(found_ST[kept], exact_ST[kept]).statistic > 0.8
    assert (np.isnan(exact_ST) == ~edges.before_ST).all()


def test_the_output_edge_of_the_last_module_is_restoring_it(tiny_llava, runs):
    """Nothing but the (here removed) norm follows: the estimate is exact."""
    model = tiny_llava()
    model.module.model.language_model.norm = torch.nn.Identity()
    readout, edges = AnswerReadout(model, "logit_difference"), stream_edges(model, "language")
    exact_ST, found_ST = edge_effects(model, *runs, edges, readout), edge_estimates(model, *runs, edges, readout)
    np.testing.assert_allclose(found_ST[:, -1], exact_ST[:, -1], atol=1e-5)


def test_towers_of_a_dual_encoder_have_edges(tiny_clip, pairs):
    clean, corrupt = contrast_runs(tiny_clip, caption_pair_contrasts(pairs)[0])
    edges = stream_edges(tiny_clip, "vision")
    found_ST = edge_estimates(tiny_clip, clean, corrupt, edges, CosineReadout(tiny_clip), steps=8)
    exact_ST = edge_effects(tiny_clip, clean, corrupt, edges, CosineReadout(tiny_clip))
    kept = edges.before_ST
    assert spearmanr(found_ST[kept], exact_ST[kept]).statistic > 0.8


def test_post_norm_towers_are_refused_in_one_line():
    spec = ModelSpec(name="blip", family="blip", weights="random", source="", architecture="blip-tiny", n_layers=4)
    with pytest.raises(ConfigError, match="has no edges"):
        stream_edges(load_model(spec), "text")
