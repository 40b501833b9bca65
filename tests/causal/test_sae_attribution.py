"""Attribution to features against autograd through the decoder, and the trace method that checks it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from cmma.causal.attribution import query_effects
from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary
from cmma.causal.intervening import queries_for
from cmma.causal.method_configs import SAEAttributionConfig
from cmma.causal.methods.registry import run_method
from cmma.causal.queries import caption_queries
from cmma.causal.readout import AnswerReadout, CosineReadout, collate_queries
from cmma.causal.rivals import prepare_readout
from cmma.causal.selection import ablation_effects
from cmma.errors import ConfigError
from cmma.hooks import TokenEdit, splice

LAYER = 1


def by_autograd(model, sae, queries, readout, tokens, scale):
    """−a ⊙ ∂m/∂a [queries, K] by differentiating through the decoder, one query at a time, dense in the latents."""
    rows = []
    for query in queries:
        leaves = []

        def decode_leaf(acts_ND, modality_N, where, leaves=leaves):
            latents_NK = sae.encode(acts_ND, modality_N)
            leaves.append((scale * latents_NK).requires_grad_())
            return sae.decode(leaves[-1], modality_N) + acts_ND - sae.decode(latents_NK, modality_N)

        with splice(model, LAYER, TokenEdit(decode_leaf, tokens)):
            score = readout(collate_queries(model, [query]), [query]).sum()
        gradients = torch.autograd.grad(score, leaves)
        rows.append(-sum((leaf / scale * grad).sum(dim=0) for leaf, grad in zip(leaves, gradients, strict=True)))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("tokens", ["all", "visual", "textual"])
def test_one_pass_equals_autograd_through_the_decoder(tiny, sae, queries, tokens):
    readout = AnswerReadout(tiny, "log_probability")
    found = list(query_effects(tiny, sae, LAYER, queries, readout, tokens=tokens, batch_size=4))
    effect_BK = torch.cat([each.effect_BK for each in found])
    torch.testing.assert_close(effect_BK, by_autograd(tiny, sae, queries, readout, tokens, 1.0), atol=1e-5, rtol=1e-3)
    assert [query for each in found for query in each.queries] == queries


def test_integrated_gradients_are_means_over_the_midpoints(tiny, sae, queries):
    readout = AnswerReadout(tiny, "log_probability")
    found = torch.cat([each.effect_BK for each in query_effects(tiny, sae, LAYER, queries, readout, steps=2)])
    quarters = [by_autograd(tiny, sae, queries, readout, "all", scale) for scale in (0.25, 0.75)]
    torch.testing.assert_close(found, sum(quarters) / 2, atol=1e-5, rtol=1e-3)


def test_the_two_towers_of_a_dual_encoder_add_up(tiny_clip, clip_sae, pairs):
    queries, readout = caption_queries(pairs[:3]), CosineReadout(tiny_clip)
    (found,) = query_effects(tiny_clip, clip_sae, LAYER, queries, readout)
    expected = by_autograd(tiny_clip, clip_sae, queries, readout, "all", 1.0)
    torch.testing.assert_close(found.effect_BK, expected, atol=1e-6, rtol=1e-3)


def test_tokens_are_counted_where_features_are_active(tiny, sae, queries):
    readout = AnswerReadout(tiny, "log_probability")
    (one,) = query_effects(tiny, sae, LAYER, queries[:1], readout, tokens="visual")
    assert float(one.tokens_B[0]) == 9
    assert float(one.tokens_BK.max()) <= 9
    assert (one.tokens_BK[:, -4:] == 0).all()  # the dead ones


def test_the_method_measures_on_other_images_than_it_chooses_on(tiny, sae, pairs):
    options = SAEAttributionConfig(verify=6, random=8, top=4, batch_size=4)
    config = TraceConfig(method="sae_attribution", correct_only=False, sae_attribution=options)
    found = run_method(tiny, pairs, config, Dictionary(sae, LAYER))
    table = found.tables["features"]
    assert (table["chosen"] == "screen").sum() == 6
    assert (table["chosen"] == "random").sum() >= 2
    assert found.summary["n_choosing"] == found.summary["n_used"] == 6
    assert 0 <= found.summary["recall"] <= 1

    readout, prepared = prepare_readout(tiny, [*queries_for(tiny, pairs[:6]), *queries_for(tiny, pairs[6:])])
    measure = partial(ablation_effects, tiny, sae, LAYER, prepared[6:], readout)
    features = table["feature"].head(3).tolist()
    np.testing.assert_allclose(table["effect"].head(3), measure(features).mean(axis=0), atol=1e-5)
    kinds = found.tables["kinds"]
    weighted = (kinds["effect"] * kinds["n"]).groupby(kinds["feature"]).sum() / kinds.groupby("feature")["n"].sum()
    effect = table.set_index("feature")["effect"]
    np.testing.assert_allclose(weighted, effect[weighted.index], atol=1e-6)




def test_no_dictionary_is_one_line(tiny, pairs):
    with pytest.raises(ConfigError, match="train-sae"):
        run_method(tiny, pairs, TraceConfig(method="sae_attribution"))
    with pytest.raises(ConfigError, match="exceeds verify"):
        SAEAttributionConfig(verify=4, top=8)
