"""The logit lens against the model's own last step, and against explicit loops."""

from __future__ import annotations

import pytest
import torch

from cmma.causal.logit_lens import first_tokens, internal_confidence, lens_probabilities
from cmma.errors import ConfigError, DataError
from cmma.hooks import Trace
from cmma.models import load_model
from cmma.models.spec import ModelSpec

WORDS = ["circle", "square", "ring"]


@pytest.fixture(scope="module")
def blip():
    spec = ModelSpec(name="blip", family="blip", weights="random", source="", architecture="blip-tiny", n_layers=4)
    return load_model(spec)


@pytest.fixture(scope="module")
def batch(tiny, pairs):
    """Three images with texts of unequal length."""
    return tiny.collate(pairs[:3], ["is it red?", "how many circles are there?", "what?"])


def test_the_last_layers_lens_is_the_models_own_answer(tiny, batch):
    """Above the last block only the norm and the output embedding are left."""
    tokens_W = first_tokens(tiny, WORDS)
    lens_BSW = lens_probabilities(tiny, batch, tokens_W)[:, -1]
    with torch.no_grad():
        own_BW = tiny.prompt_logits(batch).softmax(dim=-1)[:, tokens_W]
    torch.testing.assert_close(lens_BSW[torch.arange(3), batch.prompt_end], own_BW)


def test_the_last_layers_lens_is_the_answer_decoders_own(blip, pairs):
    batch = blip.collate(pairs[:2], ["is it red?", "what is it?"])
    tokens_W = first_tokens(blip, ["yes", "no"])
    with torch.no_grad():
        own_BW = blip.prompt_logits(batch).softmax(dim=-1)[:, tokens_W]
    torch.testing.assert_close(lens_probabilities(blip, batch, tokens_W)[:, -1, 0], own_BW)


def test_internal_confidence_is_the_largest_over_layers_and_image_tokens(tiny, batch):
    found_BW = internal_confidence(tiny, batch, WORDS)
    head, norm = tiny.module.lm_head, tiny.module.model.language_model.norm
    with torch.no_grad(), Trace(tiny, [f"language.layers.{layer}.resid_post" for layer in range(4)]) as acts:
        tiny(**batch)
    for row in range(3):
        visual = (batch["input_ids"][row] == tiny.config.image_token_id).nonzero().flatten().tolist()
        for column, word in enumerate(WORDS):
            token = tiny.tokenizer(word, add_special_tokens=False)["input_ids"][0]
            each = [head(norm(acts[site][row, at])).softmax(-1)[token] for site in acts for at in visual]
            assert float(found_BW[row, column]) == pytest.approx(float(max(each)), rel=1e-5)


def test_padding_changes_no_confidence(tiny, batch, pairs):
    alone_W = internal_confidence(tiny, tiny.collate(pairs[2:3], ["what?"]), WORDS)[0]
    torch.testing.assert_close(internal_confidence(tiny, batch, WORDS)[2], alone_W)


def test_each_row_may_ask_for_its_own_token(tiny, batch):
    tokens_W = first_tokens(tiny, WORDS)
    every_BLSW = lens_probabilities(tiny, batch, tokens_W)
    own_BLS1 = lens_probabilities(tiny, batch, tokens_W[:, None])
    for row in range(3):
        torch.testing.assert_close(own_BLS1[row, ..., 0], every_BLSW[row, ..., row])


def test_what_cannot_be_read_is_refused_in_one_line(tiny, tiny_clip, blip, batch, pairs):
    with pytest.raises(ConfigError, match="writes none"):
        lens_probabilities(tiny_clip, tiny_clip.collate(pairs[:1]), torch.tensor([0]))
    with pytest.raises(ConfigError, match="read at image tokens"):
        internal_confidence(blip, blip.collate(pairs[:1], ["what?"]), WORDS)
    with pytest.raises(ConfigError, match="0 to 3"):
        internal_confidence(tiny, batch, WORDS, layers=[4])
    with pytest.raises(DataError, match="same token"):
        internal_confidence(tiny, batch, ["star", "square"])  # the random model's words begin with their first letter
