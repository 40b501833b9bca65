"""Interventions on features (paper, Eq. 8-11), their controls, and the attribution that selects them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cmma.causal.attribution import attribute
from cmma.causal.config import InterventionConfig, SelectionConfig
from cmma.causal.controls import matched_features, random_direction
from cmma.causal.effects import InterventionResult, summarise
from cmma.causal.intervening import divide, intervene
from cmma.causal.interventions import (
    Intervention,
    dose_response,
    generate_texts,
    noting_norms,
    read_latents,
    run_intervention,
)
from cmma.causal.queries import assert_disjoint, caption_queries, image_pair_contrasts
from cmma.causal.readout import AnswerReadout, CosineReadout, collate_queries
from cmma.causal.rivals import prepare_readout
from cmma.causal.selection import ablation_effects, select_features
from cmma.errors import ConfigError, DataError
from cmma.hooks import Trace, splice
from cmma.hooks.resume import EditedPasses

LAYER = 1
FEATURES = (3, 8, 20)


@pytest.fixture(scope="module")
def readout(tiny):
    return AnswerReadout(tiny, "log_probability")


@pytest.fixture(scope="module")
def attribution(tiny, sae, queries, readout):
    return attribute(tiny, sae, LAYER, queries, readout)


def measured(tiny, sae, queries, readout, attribution, intervention, **options):
    options = {"density_K": attribution.density_K, "n_controls": 2, **options}
    return run_intervention(tiny, sae, LAYER, queries, intervention, readout, **options)


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "features", "strength"),
    [("ablate", (92, 95), 0.0), ("amplify", FEATURES, 1.0), ("amplify", (92,), 3.0), ("combine", FEATURES, 1.0)],
)
def test_edits_that_change_no_latent_change_nothing(tiny, sae, queries, readout, attribution, kind, features, strength):
    """Dead latents (92 … 95), α = 1 and β = 1 leave a' = a; the reconstruction error passes through untouched."""
    result = measured(tiny, sae, queries, readout, attribution, Intervention(kind, features, strength))
    np.testing.assert_allclose(result.after_N, result.before_N, atol=1e-5)
    assert result.change_norm < 1e-5
    np.testing.assert_allclose(result.random_directions_CN, np.stack([result.before_N] * 2), atol=1e-5)


def test_dropping_the_error_is_another_intervention(tiny, sae, queries, readout, attribution):
    result = measured(tiny, sae, queries, readout, attribution, Intervention("ablate", (92,), keep_error=False))
    assert result.change_norm > 0.1


def test_equations_agree_where_they_overlap(tiny, sae, queries, readout, attribution):
    """α = 0 is ablation; a clamp to 0 is ablation; β = 0 of Eq. 11 is the substitution of Eq. 10."""
    def after(kind, strength=0.0):
        return measured(tiny, sae, queries, readout, attribution, Intervention(kind, FEATURES, strength)).after_N

    np.testing.assert_allclose(after("amplify"), after("ablate"), atol=1e-5)
    np.testing.assert_allclose(after("clamp"), after("ablate"), atol=1e-5)
    np.testing.assert_allclose(after("combine"), after("substitute"), atol=1e-5)
    assert np.abs(after("substitute") - after("ablate")).max() > 1e-4


def test_a_sample_that_is_its_own_aligned_source_stays_as_it_is(tiny, sae, queries, readout, attribution):
    aligned = Intervention("substitute", FEATURES, source="aligned")
    result = measured(tiny, sae, queries, readout, attribution, aligned, sources=queries, batch_size=2)
    np.testing.assert_allclose(result.after_N, result.before_N, atol=1e-5)


@torch.no_grad()
def test_a_clamped_latent_has_its_value(tiny, sae, queries):
    """Re-encoding finds it where the dictionary is orthonormal and tied, and the feature was active before.

    Where it was silent, the error that passes through holds the negative pre-activation that ReLU cut off, and what is
    found is the value plus that.
    """
    tied = deepcopy(sae)
    basis = torch.linalg.qr(torch.randn(sae.d, sae.d, generator=torch.Generator().manual_seed(0)))[0]
    tied.W_dec[: sae.d], tied.W_enc[: sae.d], tied.b_enc[: sae.d] = basis, basis, 0.0
    batch = collate_queries(tiny, queries)
    site = tiny.record_sites(LAYER)[0].site
    clamp = Intervention("clamp", (5, 7), strength=2.5, tokens="visual").edit(tied)
    modality_BS = tiny.token_modality(batch)
    with Trace(tiny, [site]) as before:
        tiny(**batch)
    with splice(tiny, LAYER, clamp), Trace(tiny, [site]) as after:
        tiny(**batch)
    visual_BS = modality_BS == 0
    latents = tied.encode(after[site][visual_BS], modality_BS[visual_BS])
    was = tied.encode(before[site][visual_BS], modality_BS[visual_BS])
    standard = tied.standardiser.standardise(before[site][visual_BS], modality_BS[visual_BS])
    cut_off = tied.pre_activations(standard).clamp(max=0)
    torch.testing.assert_close(latents[:, [5, 7]], (2.5 + cut_off[:, [5, 7]]).relu(), atol=1e-4, rtol=0)
    active = was[:, 5] > 0
    assert 5 < int(active.sum()) < len(active)
    assert latents[active, 5].tolist() == pytest.approx([2.5] * int(active.sum()), abs=1e-4)
    torch.testing.assert_close(latents[:, 8 : sae.d], was[:, 8 : sae.d], atol=1e-4, rtol=0)
    assert torch.equal(after[site][~visual_BS], before[site][~visual_BS])


def test_the_source_mean_is_over_the_chosen_tokens(tiny, sae, queries):
    batch = collate_queries(tiny, queries)
    latents_BSF, mean_BF = read_latents(tiny, sae, LAYER, batch, FEATURES, "visual")
    visual_BS = tiny.token_modality(batch) == 0
    assert float(latents_BSF[~visual_BS[:, : latents_BSF.shape[1]]].abs().sum()) == 0
    torch.testing.assert_close(mean_BF, latents_BSF.sum(1) / visual_BS.sum(1, keepdim=True))


# --- controls -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ablate", "amplify", "clamp"])
def test_a_random_direction_changes_every_token_by_the_same_norm(tiny, sae, queries, kind):
    edit = Intervention(kind, FEATURES, 2.0).edit(sae)
    batch = collate_queries(tiny, queries)
    norms, control_norms = [], []
    for each, seen in ((edit, norms), (random_direction(edit, 0), control_norms)):
        with splice(tiny, LAYER, noting_norms(each, seen)):
            tiny(**batch)
    torch.testing.assert_close(control_norms[0], norms[0], atol=1e-5, rtol=1e-4)
    assert float(norms[0].max()) > 0.01


@torch.no_grad()
def test_in_a_dual_encoder_each_tower_gets_the_norm_of_its_own_change(tiny_clip, clip_sae, pairs):
    batch = collate_queries(tiny_clip, caption_queries(pairs[:4]))
    edit = Intervention("ablate", tuple(range(40))).edit(clip_sae)
    sites = [place.site for place in tiny_clip.record_sites(LAYER)]
    changes = []
    with Trace(tiny_clip, sites) as clean:
        tiny_clip(**batch)
    for each in (edit, random_direction(edit, 3)):
        with splice(tiny_clip, LAYER, each), Trace(tiny_clip, sites) as acts:
            tiny_clip(**batch)
        changes.append([(acts[site] - clean[site]).norm(dim=-1) for site in sites])
    for ours, control in zip(*changes, strict=True):
        torch.testing.assert_close(control, ours, atol=1e-5, rtol=1e-3)
        assert float(ours.max()) > 0.01


def test_random_features_are_live_others_of_matched_density():
    density = torch.zeros(400)
    density[:200] = 0.01
    density[200:300] = 0.5
    density[300:316] = 0.012
    draws = matched_features(density, [3, 250], n_draws=20, seed=0)
    assert all(density[low] == 0.01 and density[high] == 0.5 for low, high in draws)
    assert all(3 not in drawn and 250 not in drawn and len(set(drawn)) == 2 for drawn in draws)
    assert len({tuple(drawn) for drawn in draws}) > 15
    assert draws == matched_features(density, [3, 250], n_draws=20, seed=0)
    with pytest.raises(DataError, match="only 1 others are live"):
        matched_features(torch.tensor([0.1, 0.1, 0.1, 0.0]), [0, 1], 1, 0)


# --- generation -----------------------------------------------------------------------------------------------------


def first_tokens(texts):
    """The tiny model mostly says words of its vocabulary that have no letters: <unused7312>."""
    return [text.split(">")[0] for text in texts]


def test_phases_of_generation(tiny, sae, pairs, attribution):
    """The first new token is decided in the prefill: an edit of the decode phase cannot change it."""
    clamp = Intervention("clamp", FEATURES, strength=80.0)
    written = {
        phase: generate_texts(
            tiny, sae, LAYER, pairs[:6], replace(clamp, phase=phase), density_K=attribution.density_K, max_new_tokens=5
        )
        for phase in ("prefill", "decode", "all")
    }
    texts = written["decode"]
    assert texts.before == written["prefill"].before
    assert first_tokens(texts.after) == first_tokens(texts.before)
    assert texts.after != texts.before
    assert first_tokens(written["prefill"].after) != first_tokens(texts.before)
    assert written["all"].after != texts.after


# --- attribution ----------------------------------------------------------------------------------------------------


def test_attribution_is_exact_for_a_readout_that_is_linear_in_the_latents(tiny_llava, pairs, dictionary):
    """After the last block, without the final norm, a logit difference is linear in the stream."""
    tiny = tiny_llava()
    queries = [contrast.clean for contrast in image_pair_contrasts(pairs)]
    queries = [query for query in queries if query.answer[0] != query.other[0]]  # one token per byte
    tiny.module.model.language_model.norm = torch.nn.Identity()
    sae = dictionary(tiny, 3, queries, n_latents=24)
    readout = AnswerReadout(tiny, "logit_difference")
    estimate = attribute(tiny, sae, 3, queries, readout)
    exact = ablation_effects(tiny, sae, 3, queries, readout, range(24)).mean(axis=0)
    np.testing.assert_allclose(estimate.effect_K.numpy(), exact, atol=2e-4)
    integrated = attribute(tiny, sae, 3, queries, readout, steps=4)
    np.testing.assert_allclose(integrated.effect_K.numpy(), exact, atol=2e-4)
    assert np.abs(exact).max() > 0.01
    assert (exact[-4:] == 0).all()


def test_attribution_ranks_features_like_ablation(tiny, sae, queries, readout, attribution):
    live = torch.nonzero(attribution.density_K > 0).flatten().tolist()
    exact = ablation_effects(tiny, sae, LAYER, queries, readout, live).mean(axis=0)
    assert spearmanr(attribution.effect_K[live].numpy(), exact).statistic > 0.9


def test_selection_is_ordered_by_the_verified_effect(tiny, sae, queries, readout):
    selection = select_features(tiny, sae, LAYER, queries, readout, SelectionConfig(verify=8))
    sizes = selection.table["effect"].abs()
    assert len(sizes) == 8
    assert sizes.is_monotonic_decreasing
    assert selection.top(3) == tuple(selection.table["feature"][:3])
    assert not set(selection.table["feature"]) & {92, 93, 94, 95}


# --- statistics -----------------------------------------------------------------------------------------------------


def by_hand(**changes):
    fields = {
        "kind": "ablate", "strength": 0.0, "features": (1,), "layer": 0, "readout": "r", "keys": ("a", "a", "b", "c"),
        "before_N": np.array([0.0, 2.0, 2.0, 3.0]), "after_N": np.array([1.0, 3.0, 4.0, 6.0]),
        "random_features_CN": np.array([[0.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 3.0]]),
        "random_directions_CN": np.array([[0.0, 2.0, 2.0, 3.0]]), "change_norm": 1.0, "seed": 0,
    }  # fmt: skip
    return InterventionResult(**(fields | changes))


def test_effects_are_over_images_and_controls_are_averaged():
    """Images a (mean of two queries), b, c: before 1, 2, 3; after 2, 4, 6; worked by hand."""
    row = by_hand().summary()
    assert row["n"] == 3
    assert row["shift"] == pytest.approx(2.0)
    assert row["d"] == pytest.approx(2 / np.sqrt((1 + 4) / 2))  # pooled variance of (1,2,3) and (2,4,6)
    assert row["control_features"] == pytest.approx(1 / 6)  # half a draw's +1 on image a
    assert row["excess_features"] == pytest.approx(2 - 1 / 6)
    assert row["excess_directions"] == pytest.approx(2.0)
    assert row["shift_p"] == pytest.approx(0.25, abs=0.02)  # all signs equal: 2 of 8 flips
    assert row["shift_low"] < 2 < row["shift_high"]


def test_holm_is_over_the_interventions():
    table = summarise([by_hand(), by_hand(kind="amplify"), by_hand(kind="clamp")])
    np.testing.assert_allclose(table["shift_p_holm"], np.minimum(1, 3 * table["shift_p"]))


# --- selection and effect stay apart --------------------------------------------------------------------------------


def test_selection_and_effect_never_share_an_image_or_a_pair(pairs):
    queries = caption_queries(pairs)
    assert_disjoint(queries[:4], queries[4:])
    with pytest.raises(DataError, match="1 images are used both"):
        assert_disjoint(queries[:3], queries[3:])  # the two sides of one pair
    for n in range(2, 9):
        choosing, measuring = divide(pairs, n, 4)
        assert_disjoint(caption_queries(choosing), caption_queries(measuring))


def test_the_whole_from_a_configuration(tiny, sae, pairs):
    """Selected on one half, measured on the other; a dose of α = 1 is no intervention."""
    config = InterventionConfig(
        kind="amplify", strength=3.0, strengths=[1.0, 2.0], n_features=2, n_controls=2, max_new_tokens=3,
        selection=SelectionConfig(n_samples=6, verify=4),
    )  # fmt: skip
    outcome = intervene(tiny, sae, LAYER, pairs, config)
    assert outcome.result.features == outcome.selection.top(2)
    assert not {query.key for query in outcome.selection.queries} & set(outcome.result.keys)
    assert [dose.strength for dose in outcome.doses] == [1.0, 2.0]
    np.testing.assert_allclose(outcome.doses[0].after_N, outcome.doses[0].before_N, atol=1e-5)
    assert outcome.texts.keys == outcome.result.keys


def test_dual_encoders_intervene_on_both_towers(tiny_clip, clip_sae, pairs):
    queries = caption_queries(pairs[:4])
    readout = CosineReadout(tiny_clip)
    found = attribute(tiny_clip, clip_sae, LAYER, queries, readout)
    intervention = Intervention("ablate", (1, 2, 3))
    options = {"density_K": found.density_K, "n_controls": 1}
    both, visual = (
        run_intervention(tiny_clip, clip_sae, LAYER, queries, replace(intervention, tokens=tokens), readout, **options)
        for tokens in ("all", "visual")
    )
    assert np.abs(both.after_N - both.before_N).max() > 1e-6
    assert np.abs(both.after_N - visual.after_N).max() > 1e-7


def test_doses_differ_only_in_strength(tiny, sae, queries, readout, attribution):
    doses = dose_response(
        tiny, sae, LAYER, queries, Intervention("clamp", FEATURES), readout, [0.0, 4.0],
        density_K=attribution.density_K, n_controls=1,
    )  # fmt: skip
    np.testing.assert_array_equal(doses[0].before_N, doses[1].before_N)
    assert doses[1].change_norm > doses[0].change_norm


def test_wrong_interventions_are_one_clear_line():
    with pytest.raises(ConfigError, match="ablate, amplify"):
        Intervention("amputate", (1,))
    with pytest.raises(ConfigError, match="at least one feature"):
        Intervention("ablate", ())
    with pytest.raises(ConfigError, match=r"Eq\. 11"):
        InterventionConfig(kind="combine", strength=1.5)


@pytest.mark.parametrize("kind", ["llava", "clip"])
def test_edited_passes_equal_whole_passes_under_the_same_edit(kind, tiny, sae, queries, tiny_clip, clip_sae, pairs):
    model, dictionary = (tiny, sae) if kind == "llava" else (tiny_clip, clip_sae)
    asked = queries if kind == "llava" else caption_queries(pairs[::2])
    readout, asked = prepare_readout(model, asked)
    batch = collate_queries(model, asked)
    passes = EditedPasses(model, 1, batch, partial(readout, queries=asked))
    assert passes.resumes
    edit = dictionary.edit(ablate=list(range(40)))
    with torch.no_grad(), splice(model, 1, edit):
        whole_B = readout(batch, asked)
    torch.testing.assert_close(passes(edit), whole_B, atol=1e-5, rtol=0)
    assert (passes(edit) - passes.clean_B).abs().max() > 1e-4
