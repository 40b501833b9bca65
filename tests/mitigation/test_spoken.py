"""Mentions in captions: what is hallucinated, and where its word is decided."""

from __future__ import annotations

import torch

from cmma.causal.readout import collate_queries
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY, visible_shapes
from cmma.hooks import Trace
from cmma.mitigation.prone import evidence
from cmma.mitigation.spoken import MentionReadout, first_of_each_image, spoken_mentions
from cmma.modality import Modality
from cmma.testbed.scenes import SHAPES

LAYER = 1
CAPTION = "a small solid blue ring, a large dotted yellow star. the blue ring is above the yellow star."


def test_each_object_is_taken_once_at_its_first_mention(toy, biased):
    found = spoken_mentions(toy, biased[:1], [CAPTION], SHAPES_VOCABULARY)
    assert [(each.node, each.hallucinated) for each in found] == [("ring", False), ("star", True)]
    assert [each.answer for each in found] == [CAPTION[:23], CAPTION[:51]]
    for mention in found:
        assert toy.answer_ids(CAPTION)[mention.token] == toy.answer_ids(mention.node)[0]
        assert len(toy.answer_ids(mention.answer)) == mention.token + 1


def test_an_image_is_represented_by_a_hallucination_then_by_the_same_object(toy, biased, plain):
    star = next(sample for sample in plain if {"star"} < set(visible_shapes(sample)))
    other = next(sample for sample in plain if "star" not in visible_shapes(sample))
    beside, alone = (min({*visible_shapes(sample)} - {"star"}) for sample in (star, other))
    captions = [CAPTION, f"a red {beside}, a red star.", f"a red {alone}."]
    found = spoken_mentions(toy, [biased[0], star, other], captions, SHAPES_VOCABULARY)
    assert [mention.node for mention in first_of_each_image(found)] == ["star", "star", alone]


def test_the_margin_is_the_word_against_the_best_other_object(toy, biased):
    mentions = spoken_mentions(toy, biased[:2], [CAPTION, "a small red cross, a large green square"], SHAPES_VOCABULARY)
    batch = collate_queries(toy, mentions)
    with torch.no_grad():
        margin_B = MentionReadout(toy, SHAPES_VOCABULARY)(batch, mentions)
        for row, mention in enumerate(mentions):
            single = toy.collate([mention.sample], answers=[mention.answer])
            logits_V = toy(**single).logits[0, -2]  # the word is the last token of the answer
            at = {shape: logits_V[toy.answer_ids(shape)[0]] for shape in SHAPES}
            plural = {shape: logits_V[toy.answer_ids(word)[0]] for word, shape in SHAPES_VOCABULARY.node_of.items()
                      if word != shape}
            rivals = [table[shape] for table in (at, plural) for shape in SHAPES if shape != mention.node]
            torch.testing.assert_close(margin_B[row], at[mention.node] - max(rivals), atol=1e-4, rtol=1e-4)


def test_evidence_is_the_largest_activation_on_the_image_or_that_before_the_word(toy, sae, biased):
    mentions = spoken_mentions(toy, biased[:2], [CAPTION, "a small red cross"], SHAPES_VOCABULARY)
    found = {which: evidence(toy, sae, LAYER, mentions, which, 8) for which in ("visual", "textual", "all")}
    on_word = evidence(toy, sae, LAYER, mentions, "textual", 8, on_word=True)
    site = toy.record_sites(LAYER)[0].site
    for row, mention in enumerate(mentions):
        batch = toy.collate([mention.sample], answers=[mention.answer])
        with torch.no_grad(), Trace(toy, [site]) as acts:
            toy(**batch)
        modality_S = toy.token_modality(batch)[0]
        latents_SK = sae.encode(acts[site][0], modality_S.clamp(min=0))
        visual_K = latents_SK[modality_S == Modality.VISUAL].amax(0)
        expected = {"visual": visual_K, "textual": latents_SK[-2], "all": torch.maximum(visual_K, latents_SK[-2])}
        for which, value_K in expected.items():
            torch.testing.assert_close(torch.from_numpy(found[which][row]), value_K, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(on_word[row]), latents_SK[-1], atol=1e-4, rtol=1e-4)
