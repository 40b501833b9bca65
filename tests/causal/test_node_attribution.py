"""Attribution patching against activation patching, where theory says that they agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.corruptions import contrast_runs
from cmma.causal.method_configs import AttributionConfig
from cmma.causal.methods.registry import run_method
from cmma.causal.modules import head_parts
from cmma.causal.node_attribution import input_gradients, patch_estimates, stream_entrances
from cmma.causal.patching import activation_patch, run_scores
from cmma.causal.positions import position_groups
from cmma.causal.queries import image_pair_contrasts
from cmma.causal.readout import AnswerReadout
from cmma.errors import ConfigError
from cmma.hooks import Edit, TokenEdit, Trace
from cmma.models import load_model
from cmma.models.spec import ModelSpec


@pytest.fixture(scope="module")
def runs(tiny, pairs):
    """One semantic pair whose two answers begin differently."""
    contrasts = [each for each in image_pair_contrasts(pairs) if each.clean.answer[0] != each.clean.other[0]]
    return contrast_runs(tiny, contrasts[0])


@pytest.fixture(scope="module")
def readout(tiny):
    return AnswerReadout(tiny, "logit_difference")


def test_estimates_are_exact_where_the_rest_is_linear(tiny_llava, runs):
    """Above the last block's stream only norm and output embedding are left; without the norm that is linear."""
    model = tiny_llava()
    model.module.model.language_model.norm = torch.nn.Identity()
    readout, (clean, corrupt) = AnswerReadout(model, "logit_difference"), runs
    groups = position_groups(model, clean, corrupt, "language", "whole", "each")
    site = "language.layers.3.resid_post"
    exact = activation_patch(model, [clean], [corrupt], [site], [groups], readout)
    found = patch_estimates(model, clean, corrupt, {site: site}, groups, readout)
    np.testing.assert_allclose(found, exact.score_CRG[0] - exact.low_C[0], atol=1e-5)
    assert np.abs(found).max() > 1e-3


def test_the_heads_of_an_attention_add_up_to_it(tiny, runs, readout):
    """The output projection is linear, and gives each head its own columns."""
    clean, corrupt = runs
    length = clean.batch["input_ids"].shape[1]
    positions = {"all": None, "each": torch.arange(length), "last": corrupt.batch.prompt_end}
    rows = {"attention": "language.layers.2.attn_out"}
    rows |= {str(part.start): part for part in head_parts(tiny, "language.layers.2.heads")}
    found = patch_estimates(tiny, clean, corrupt, rows, positions, readout)
    np.testing.assert_allclose(found[1:].sum(axis=0), found[0], atol=1e-5)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-9)


def test_integrated_gradients_of_all_inputs_are_the_total_effect(tiny, runs, readout):
    """Completeness (Sundararajan et al. 2017): over all input positions they add up to clean minus corrupt."""
    clean, corrupt = runs
    (site,) = stream_entrances(tiny, "language")
    length = clean.batch["input_ids"].shape[1]
    everything = {"all": torch.arange(length)}
    total = float(run_scores(tiny, clean, readout)) - float(run_scores(tiny, corrupt, readout))
    found = patch_estimates(tiny, clean, corrupt, {"in": site}, everything, readout, steps=30)
    assert float(found[0, 0]) == pytest.approx(total, rel=0.01)


def test_gradients_are_the_slopes_of_small_patches(tiny, runs, readout):
    """A thousandth of the way to the clean activation moves the readout by a thousandth of the estimate."""
    clean, corrupt = runs
    site, positions = "language.layers.1.mlp_out", {"last": corrupt.batch.prompt_end}
    estimate = float(patch_estimates(tiny, clean, corrupt, {"mlp": site}, positions, readout)[0, 0])
    with torch.no_grad(), Trace(tiny, [site]) as acts:
        tiny(**clean.batch)
    share, at = 0.01, int(corrupt.batch.prompt_end[0])

    def nudge(sign):
        def move(acts_ND, modality_N, where):
            return acts_ND + sign * share * (acts[site][0, at] - acts_ND)

        with torch.no_grad(), Edit(tiny, site, TokenEdit(move, tokens=[at])):
            return float(readout(corrupt.batch, [corrupt.query]))

    assert (nudge(1) - nudge(-1)) / (2 * share) == pytest.approx(estimate, rel=0.02)


def test_what_the_readout_does_not_depend_on_has_no_gradient(tiny, runs, readout):
    """The last block's stream is read at the answer only; a vision site below the given inputs not at all."""
    _, corrupt = runs
    (entrance,) = stream_entrances(tiny, "language")
    with torch.no_grad(), Trace(tiny, [entrance]) as acts:
        tiny(**corrupt.batch)
    (gradient,) = input_gradients(
        tiny, corrupt, {entrance: acts[entrance]}, ["language.layers.3.resid_post"], readout)
    moved = gradient[0].abs().sum(dim=-1).nonzero().flatten().tolist()
    assert moved == [int(corrupt.batch.prompt_end[0])]


def test_the_method_agrees_with_the_engine(tiny, pairs):
    options = AttributionConfig(modules=["residual", "mlp", "head"], exact=2, top=5)
    config = TraceConfig(method="attribution", max_samples=3, correct_only=False, attribution=options)
    found = run_method(tiny, pairs, config)
    table = found.tables["attribution"]
    assert set(table["module"]) == {"residual", "mlp", "head"}
    assert found.summary["rank_correlation_residual"] > 0.7
    assert found.summary["rank_correlation_head"] > 0.7
    assert found.summary["rank_correlation_edges"] > 0.7
    assert len(found.tables["edges"]) == 45
    measured = run_method(tiny, pairs[:4], TraceConfig(
        method="semantic_pair", module="mlp", correct_only=False)).tables["trace"].set_index(["row", "group"])["effect"]
    exact = table[table["module"] == "mlp"].set_index(["row", "group"])["exact"].dropna()
    np.testing.assert_allclose(exact, measured[exact.index], atol=1e-5)


def test_streams_of_models_with_towers_are_attributed_too(pairs):
    """BLIP's question encoder and decoder: what enters them are the towers below, given at their tops."""
    spec = ModelSpec(name="blip", family="blip", weights="random", source="", architecture="blip-tiny", n_layers=4)
    blip = load_model(spec)
    config = TraceConfig(
        method="attribution", max_samples=2, correct_only=False, readout="log_probability",
        attribution=AttributionConfig(modules=["residual"], exact=2, top=4, steps=8),
    )
    for stream in ("text", "decoder"):
        found = run_method(blip, pairs, replace(config, stream=stream))
        assert found.summary["rank_correlation_residual"] > 0.5
    assert stream_entrances(blip, "decoder")[0] == "decoder.layers.0.resid_pre"


def test_what_cannot_be_estimated_is_one_line(tiny, pairs):
    with pytest.raises(ConfigError, match="do not add up"):
        run_method(tiny, pairs, TraceConfig(method="attribution", window=3))
    options = AttributionConfig(corruption="noise")
    config = TraceConfig(method="attribution", readout="logit_difference", attribution=options)
    with pytest.raises(ConfigError, match="needs the second answer"):
        run_method(tiny, pairs, config)
