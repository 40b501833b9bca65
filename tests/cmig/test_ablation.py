"""Batched, resumed ablations against the plain way: one whole forward pass per set and sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal.queries import caption_queries, question_queries
from cmma.causal.readout import collate_queries
from cmma.causal.rivals import prepare_readout, with_rivals
from cmma.cmig import ablation as module
from cmma.cmig.ablation import FeatureAblation
from cmma.cmig.measuring import Interactions
from cmma.cmig.selection import feature_scores
from cmma.hooks.edit import Edit, TokenEdit

LAYER = 1
SETS = [(), (3,), (7,), (11,), (20,), (3, 7), (3, 11), (7, 20), (11, 20), (3, 7, 20)]


@torch.no_grad()
def plain_ablation(model, sae, layer, queries, readout, off, tokens="all"):
    """One sample at a time, decode(a′) − decode(a) written at the site by an Edit during a whole forward pass."""
    values = []
    width = model.record_width(layer)
    for query in queries:
        edits = []
        for place in model.record_sites(layer):
            block = slice(place.start, place.start + place.width)

            def edit(acts_ND, modality_N, where, block=block):
                records_NR = acts_ND.new_zeros(len(acts_ND), width)
                records_NR[:, block] = acts_ND
                latents_NK = sae.encode(records_NR, modality_N)
                kept_NK = latents_NK.clone()
                kept_NK[:, list(off)] = 0
                return acts_ND + (sae.decode(kept_NK, modality_N) - sae.decode(latents_NK, modality_N))[:, block]

            edits.append(Edit(model, place.site, TokenEdit(edit, tokens=tokens)))
        with torch.no_grad():
            for each in edits:
                each.__enter__()
            values.append(float(readout(collate_queries(model, [query]), [query])))
            for each in edits:
                each.__exit__(None, None, None)
    return np.array(values)


@pytest.fixture(scope="module")
def asked(tiny, scenes):
    return prepare_readout(tiny, question_queries(scenes[:3], per_sample=1), "log_probability")


@pytest.mark.parametrize("tokens", ["all", "visual", "textual"])
@pytest.mark.parametrize("rows_at_once", [3, 256])
def test_llava_equals_one_whole_pass_per_set_and_sample(tiny, dictionary, asked, tokens, rows_at_once):
    readout, queries = asked
    sae = dictionary(tiny, LAYER)
    batch = collate_queries(tiny, queries)
    ablation = FeatureAblation(tiny, sae, LAYER, batch, queries, [3, 7, 11, 20], readout, tokens, rows_at_once)
    measured = ablation(SETS)
    plain = np.stack([plain_ablation(tiny, sae, LAYER, queries, readout, off, tokens) for off in SETS])
    np.testing.assert_allclose(measured, plain, atol=1e-5)
    assert np.abs(plain - plain[0]).max() > 1e-3  # the ablations do something
    assert ablation.resumes
    assert ablation.skips_prefix
    assert len(set(batch.prompt_end.tolist())) > 1  # the shorter prompts are padded


def test_clip_equals_one_whole_pass_per_set_and_sample(tiny_clip, dictionary, scenes):
    readout, queries = prepare_readout(tiny_clip, caption_queries(scenes[:3]))
    assert readout.name == "cosine"
    sae = dictionary(tiny_clip, LAYER)
    batch = collate_queries(tiny_clip, queries)
    ablation = FeatureAblation(tiny_clip, sae, LAYER, batch, queries, [3, 7, 11, 20], readout)
    plain = np.stack([plain_ablation(tiny_clip, sae, LAYER, queries, readout, off) for off in SETS])
    np.testing.assert_allclose(ablation(SETS), plain, atol=1e-5)
    assert np.abs(plain - plain[0]).max() > 1e-4
    assert ablation.resumes
    assert not ablation.skips_prefix  # the towers are not causal from end to end


def test_where_resuming_is_not_exact_the_whole_network_runs(tiny, dictionary, asked, monkeypatch):
    readout, queries = asked
    sae, batch = dictionary(tiny, LAYER), collate_queries(tiny, queries)
    arguments = (tiny, sae, LAYER, batch, queries, [3, 7, 11, 20], readout)
    resumed_values = FeatureAblation(*arguments)(SETS)
    with monkeypatch.context() as patch:
        patch.setattr(module, "inputs_above", lambda model, layer, batch: batch.rows([0] * len(queries)))
        fallen_back = FeatureAblation(*arguments)
    assert not fallen_back.resumes
    assert not fallen_back.skips_prefix
    np.testing.assert_allclose(fallen_back(SETS), resumed_values, atol=1e-5)


def test_silent_features_cost_nothing_and_change_nothing(tiny, dictionary, asked):
    readout, queries = asked
    sae = dictionary(tiny, LAYER)
    sae.W_enc[5].zero_()
    sae.b_enc[5] = -1e6
    ablation = FeatureAblation(tiny, sae, LAYER, collate_queries(tiny, queries), queries, [3, 5], readout)
    values = ablation([(), (3,), (5,), (3, 5)])
    assert np.array_equal(values[2], values[0])
    assert np.array_equal(values[3], values[1])
    assert ablation.rows_asked == 4 * len(queries)
    assert ablation.rows_run <= 2 * len(queries)


def test_effects_of_samples_in_chunks_equal_all_at_once(tiny, dictionary, scenes):
    queries = question_queries(scenes, per_sample=1)
    sae = dictionary(tiny, LAYER)
    readout, queries = prepare_readout(tiny, queries, "log_probability")
    measured = Interactions(tiny, sae, LAYER, (3, 7, 11), readout)
    at_once, cost = measured.joined([measured.effects(queries)])
    chunked, _ = measured.joined([measured.effects(queries[:2]), measured.effects(queries[2:])])
    np.testing.assert_allclose(chunked.pair_PN, at_once.pair_PN, atol=1e-5)
    assert cost.rows_asked == 7 * len(queries)
    assert cost.resumes


def test_rivals_are_wrong_answers_that_other_queries_have(tiny, scenes):
    queries = with_rivals(tiny, question_queries(scenes, per_sample=2))
    answers = {query.answer for query in queries}
    assert all(query.other in answers - {query.answer} for query in queries)
    assert prepare_readout(tiny, queries[:1])[0].name == "logit_difference"  # its rival is known already
    alone = prepare_readout(tiny, question_queries(scenes[:1], per_sample=1))
    assert alone[0].name == "log_probability"  # nothing to hold against


def test_attribution_is_the_derivative_of_ablation(tiny, dictionary, scenes):
    """Ablating a thousandth of a feature changes the readout by a thousandth of its attribution."""
    queries = question_queries(scenes[:1], per_sample=1)
    sae = dictionary(tiny, LAYER)
    scores = feature_scores(tiny, sae, LAYER, queries, "log_probability").set_index("feature")
    readout, queries = prepare_readout(tiny, queries, "log_probability")
    features = [3, 7, 11]
    ablation = FeatureAblation(tiny, sae, LAYER, collate_queries(tiny, queries), queries, features, readout)
    share = 0.02
    clean = ablation._run(torch.zeros(1, dtype=torch.long), torch.zeros(1, 3))
    some = ablation._run(torch.zeros(3, dtype=torch.long), share * torch.eye(3))
    slope = ((some - clean) / share).abs()
    assert scores.attribution[features].to_numpy() == pytest.approx(slope.numpy(), rel=0.05, abs=1e-4)
    assert scores.density.isin([0.0, 1.0]).all()
