"""What each way of steering does to the activations, seen from outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.evaluation.captioning import generate
from cmma.evaluation.questions import Answered
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.hooks import Trace, splice
from cmma.mitigation.published import (
    Projection,
    frequency_difference,
    head_ablation,
    head_attribution,
    project_away,
    prompting,
    save,
    ssl,
)
from cmma.mitigation.spoken import MentionReadout, spoken_mentions
from cmma.mitigation.steering import feature_controls, feature_steering
from cmma.modality import Modality

LAYER = 1
CAPTION = "a small solid blue ring, a large dotted yellow star"


@pytest.fixture(scope="module")
def batch(toy, biased):
    return toy.collate(biased[:2])


@pytest.fixture(scope="module")
def mentions(toy, biased):
    return spoken_mentions(toy, biased[:3], [CAPTION] * 3, SHAPES_VOCABULARY)


def stream(toy, batch, under=None):
    """The residual stream of the layer, and which of it is the image."""
    site = toy.record_sites(LAYER)[0].site
    with torch.no_grad(), Trace(toy, [site]) as acts:
        if under is None:
            toy(**batch)
        else:
            with under:
                toy(**batch)
    return acts[site], toy.token_modality(batch) == Modality.VISUAL


def test_strength_one_is_ablation_and_zero_is_nothing(toy, sae, batch, small):
    steering = feature_steering(toy, sae, LAYER, (3, 5), small, "ours")
    ablated, _ = stream(toy, batch, splice(toy, LAYER, sae.edit(ablate=[3, 5], tokens="visual")))
    torch.testing.assert_close(stream(toy, batch, steering.under(1.0, ()))[0], ablated)
    torch.testing.assert_close(stream(toy, batch, steering.under(0.0, ()))[0], stream(toy, batch)[0])


def test_the_reverse_goes_as_far_the_other_way(toy, sae, batch, small):
    clean, _ = stream(toy, batch)
    steering = feature_steering(toy, sae, LAYER, (3, 5), small, "ours")
    there, back = (stream(toy, batch, steering.under(strength, ()))[0] - clean for strength in (0.5, -0.5))
    assert there.norm() > 0
    torch.testing.assert_close(there, -back, atol=1e-4, rtol=1e-4)


def test_a_random_direction_changes_each_token_as_much(toy, sae, batch, small):
    clean, _ = stream(toy, batch)
    steering = feature_steering(toy, sae, LAYER, (3, 5), small, "ours")
    (control,) = feature_controls(toy, sae, LAYER, (3, 5), torch.ones(48), small)["random direction"]
    own, other = (stream(toy, batch, each.under(1.0, ()))[0] - clean for each in (steering, control))
    torch.testing.assert_close(own.norm(dim=-1), other.norm(dim=-1), atol=1e-4, rtol=1e-4)
    assert torch.nn.functional.cosine_similarity(own.flatten(), other.flatten(), dim=0).abs() < 0.5


def test_ssl_moves_image_tokens_in_proportion_to_their_norm(toy, sae, batch, mentions, small):
    clean, visual = stream(toy, batch)
    steering = ssl(toy, sae, LAYER, mentions, small)
    moved = stream(toy, batch, steering.under(0.25, ()))[0] - clean
    torch.testing.assert_close(moved.norm(dim=-1)[visual], 0.25 * clean.norm(dim=-1)[visual], atol=1e-4, rtol=1e-4)
    assert moved[~visual].abs().max() == 0  # text changes while it is generated only


def test_save_moves_every_token_alike(toy, sae, batch, biased, small):
    asked = [(sample, question) for sample in biased for question in sample.questions[:2]]
    answers = [Answered(sample.key, question, "yes" if i % 3 else "no") for i, (sample, question) in enumerate(asked)]
    steering = save(toy, sae, LAYER, [sample for sample, _ in asked], answers, small)
    clean, _ = stream(toy, batch)
    moved = stream(toy, batch, steering.under(0.1, ()))[0] - clean
    kept = toy.token_modality(batch) >= 0
    assert moved[~kept].abs().sum() == 0
    torch.testing.assert_close(moved[kept], moved[kept][:1].expand_as(moved[kept]), atol=1e-4, rtol=1e-4)
    unit = torch.nn.functional.normalize(sae.directions(Modality.TEXTUAL)[list(steering.features)], dim=-1)
    along = torch.nn.functional.normalize(unit[0] - unit[1], dim=0)
    torch.testing.assert_close(torch.nn.functional.normalize(moved[kept][0], dim=0), along, atol=1e-4, rtol=1e-4)


def test_frequencies_are_compared_between_the_two_kinds():
    fires_NK = np.array([[1, 0], [1, 1], [0, 1], [0, 1]], dtype=bool)
    good_N = np.array([True, True, False, False])
    assert frequency_difference(fires_NK, good_N).tolist() == [1.0, -0.5]


def test_projecting_away_with_alpha_one_leaves_nothing_along_a_doubted_object(toy, batch, biased, small):
    direction_D = torch.randn(96, generator=torch.Generator().manual_seed(0))
    captions = generate(toy, biased[:2], None, 2, 40, "")
    named = {mention.node for mention in SHAPES_VOCABULARY.mentions(captions[0])}
    absent = next(node for node in SHAPES_VOCABULARY.nodes if node not in named)
    clean, visual = stream(toy, batch)
    for node, threshold, changes in ((min(named), 1.0, True), (min(named), -1.0, False), (absent, 1.0, False)):
        found = Projection({node: direction_D}, threshold, 0.5)
        steering = project_away(toy, LAYER, found, SHAPES_VOCABULARY, small)
        after, _ = stream(toy, batch, steering.under(1.0, biased[:2]))
        left = (after[0] @ direction_D)[visual[0]].abs().max()
        assert (left < 1e-3) == changes
        assert after[~visual].equal(clean[~visual])


def test_ablated_heads_are_those_of_zero_output_weights(toy, batch, mentions, small):
    steering = head_ablation(toy, mentions, SHAPES_VOCABULARY, small)
    wrong, readout = [m for m in mentions if m.hallucinated], MentionReadout(toy, SHAPES_VOCABULARY)
    effect_LH = head_attribution(toy, wrong, readout, 8)
    layer, head = divmod(int(effect_LH.argmin()), effect_LH.shape[1])
    with torch.no_grad(), steering.under(1.0, ()):
        found = toy(**batch).logits
    weight = toy.site(f"language.layers.{layer}.heads").module.weight
    width, kept = weight.shape[1] // effect_LH.shape[1], weight.detach().clone()
    try:
        weight.data[:, head * width : (head + 1) * width] = 0
        with torch.no_grad():
            torch.testing.assert_close(found, toy(**batch).logits, atol=1e-4, rtol=1e-4)
    finally:
        weight.data.copy_(kept)


def test_head_attribution_is_the_slope_of_scaling_the_head_down(toy, mentions):
    readout, wrong = MentionReadout(toy, SHAPES_VOCABULARY), [m for m in mentions if m.hallucinated][:1]
    effect_LH = head_attribution(toy, wrong, readout, 8)
    batch = toy.collate([wrong[0].sample], answers=[wrong[0].answer])
    step, (n_layers, n_heads) = 1e-2, effect_LH.shape
    for layer, head in ((0, 1), (n_layers // 2, 0), (n_layers - 1, n_heads - 1)):
        weight = toy.site(f"language.layers.{layer}.heads").module.weight
        kept, scores = weight.detach().clone(), []
        columns = slice(head * weight.shape[1] // n_heads, (head + 1) * weight.shape[1] // n_heads)
        try:
            for factor in (1 - step, 1 + step):
                weight.data.copy_(kept)
                weight.data[:, columns] *= factor
                with torch.no_grad():
                    scores.append(float(readout(batch, wrong)))
        finally:
            weight.data.copy_(kept)
        assert effect_LH[layer, head] == pytest.approx((scores[0] - scores[1]) / (2 * step), abs=2e-2, rel=2e-2)


def test_a_prompt_of_unknown_words_is_refused_with_them(toy, small):
    assert prompting(toy, small) == "toy_llava does not know the words mention, only, clearly"
