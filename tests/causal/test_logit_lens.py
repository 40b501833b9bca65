"""The logit lens against the model's own last step, and against explicit loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from cmma.causal.config import TraceConfig
from cmma.causal.intervening import queries_for
from cmma.causal.logit_lens import first_tokens, internal_confidence, read_lens
from cmma.causal.method_configs import LogitLensConfig
from cmma.causal.methods.registry import run_method
from cmma.causal.readout import collate_queries, make_readout
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
    lens_BSW = read_lens(tiny, batch, tokens_W).probability_BLSW[:, -1]
    with torch.no_grad():
        own_BW = tiny.prompt_logits(batch).softmax(dim=-1)[:, tokens_W]
    torch.testing.assert_close(lens_BSW[torch.arange(3), batch.prompt_end], own_BW)


def test_rank_zero_is_what_greedy_decoding_says(tiny, batch):
    with torch.no_grad():
        logits_BV = tiny.prompt_logits(batch)
    order_BV = logits_BV.argsort(dim=1, descending=True)
    rank_BW = read_lens(tiny, batch, order_BV[:, [0, 1, 40]]).rank_BLSW[torch.arange(3), -1, batch.prompt_end]
    assert rank_BW.tolist() == [[0, 1, 40]] * 3


def test_the_last_layers_lens_is_the_answer_decoders_own(blip, pairs):
    batch = blip.collate(pairs[:2], ["is it red?", "what is it?"])
    tokens_W = first_tokens(blip, ["yes", "no"])
    with torch.no_grad():
        own_BW = blip.prompt_logits(batch).softmax(dim=-1)[:, tokens_W]
    torch.testing.assert_close(read_lens(blip, batch, tokens_W).probability_BLSW[:, -1, 0], own_BW)


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
    every_BLSW = read_lens(tiny, batch, tokens_W).probability_BLSW
    own_BLS1 = read_lens(tiny, batch, tokens_W[:, None]).probability_BLSW
    for row in range(3):
        torch.testing.assert_close(own_BLS1[row, ..., 0], every_BLSW[row, ..., row])


def test_what_cannot_be_read_is_refused_in_one_line(tiny, tiny_clip, blip, batch, pairs):
    with pytest.raises(ConfigError, match="writes none"):
        read_lens(tiny_clip, tiny_clip.collate(pairs[:1]), torch.tensor([0]))
    with pytest.raises(ConfigError, match="read at image tokens"):
        internal_confidence(blip, blip.collate(pairs[:1], ["what?"]), WORDS)
    with pytest.raises(ConfigError, match="0 to 3"):
        internal_confidence(tiny, batch, WORDS, layers=[4])
    with pytest.raises(DataError, match="same token"):
        internal_confidence(tiny, batch, ["star", "square"])  # the random model's words begin with their first letter


def test_the_method_reads_the_answer_and_the_objects(tiny, pairs):
    """After the last layer, at the last token, the lens is the readout; detection is scikit-learn's AUROC."""
    words = [" circle", "square", "ring"]
    config = TraceConfig(
        method="logit_lens", correct_only=False, logit_lens=LogitLensConfig(words=words, captions=False, batch_size=5)
    )
    samples = [replace(sample, meta={**sample.meta, "objects": []}, mask=None) for sample in pairs]
    for sample, shown in zip(samples, pairs, strict=True):
        sample.meta["labels"] = [word for word in words if word.strip() in {thing["shape"] for thing in shown.objects}]
    found = run_method(tiny, samples, config)
    queries = queries_for(tiny, samples)
    readout = make_readout(tiny, "auto", "first_token_probability")
    with torch.no_grad():
        expected = torch.cat([readout(collate_queries(tiny, [query]), [query]) for query in queries]).mean()
    assert found.summary["answer_probability"] == pytest.approx(float(expected), rel=1e-5)
    table = found.tables["words"]
    assert found.summary["auroc_all"] == pytest.approx(roc_auc_score(table["present"], table["confidence"]))
    assert table["mentioned"].isna().all()


def test_objects_are_read_at_their_own_patches(tiny, pairs):
    config = TraceConfig(
        method="logit_lens", correct_only=False, max_samples=8,
        logit_lens=LogitLensConfig(words=[" circle", "square", "ring"], captions=False),
    )
    names = [figure.title for figure in run_method(tiny, pairs, config).figures]
    assert "where a present object is read" in names
