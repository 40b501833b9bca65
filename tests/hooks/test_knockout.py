"""Attention knockout: exact zeros, renormalised weights, the same under every implementation of attention."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from cmma.errors import CmmaError
from cmma.hooks import Edit, Knockout, TokenEdit, Trace
from cmma.models import load_model
from cmma.models.sites import UnknownSite
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples

TEXTS = ["is there a red circle left of the blue ring?", "what?"]
FIELDS = {"weights": "random", "source": "", "n_layers": 4}
LLAVA = ModelSpec(name="llava", architecture="llava-tiny", **FIELDS)


@pytest.fixture(scope="module")
def sdpa():
    return load_model(LLAVA)


@pytest.fixture(scope="module")
def eager():
    return load_model(replace(LLAVA, attention="eager"))


@pytest.fixture(scope="module")
def blip():
    return load_model(ModelSpec(name="blip", family="blip", architecture="blip-tiny", **FIELDS))


@pytest.fixture(scope="module")
def clip():
    return load_model(ModelSpec(name="clip", family="clip", architecture="clip-tiny", **FIELDS))


@pytest.fixture(scope="module")
def samples():
    return list(generate_samples("balanced", 0, 2))


def image_to_last(model, batch):
    """bool [B, S, S]: the last prompt token may not attend to the image."""
    rows, length = batch["input_ids"].shape
    blocked_BQK = torch.zeros(rows, length, length, dtype=torch.bool)
    for row, end in enumerate(batch.prompt_end.tolist()):
        blocked_BQK[row, end] = batch["input_ids"][row] == model.config.image_token_id
    return blocked_BQK


def everywhere(model, blocked_BQK, kind="language.layers.{}.attention"):
    names = [kind.format(layer) for layer in range(model.n_layers)]
    return {name: blocked_BQK for name in names if name in model.attentions}  # towers differ in depth


@contextmanager
def probabilities(model):
    """Attention weights [B, H, Q, K] of every layer of an eager LLaVA, in order."""
    found: list[torch.Tensor] = []
    layers = model.module.model.language_model.layers
    handles = [layer.self_attn.register_forward_hook(lambda _, __, output: found.append(output[1])) for layer in layers]
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_sdpa_equals_eager(sdpa, eager, samples, rows):
    """One row needs no padding (sdpa then gets no mask at all), two of unequal length do."""
    batch = sdpa.collate(samples[:rows], TEXTS[:rows])
    blocked = everywhere(sdpa, image_to_last(sdpa, batch))
    found = []
    for model in (sdpa, eager):
        with Knockout(model, blocked):
            found.append(model.prompt_logits(batch))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert (found[0] - sdpa.prompt_logits(batch)).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_padded_equals_unpadded(sdpa, eager, samples, attention):
    model = sdpa if attention == "sdpa" else eager
    both, alone = model.collate(samples, TEXTS), model.collate(samples[1:], TEXTS[1:])
    assert both["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with Knockout(model, everywhere(model, image_to_last(model, both))):
        padded_V = model.prompt_logits(both)[1]
    with Knockout(model, everywhere(model, image_to_last(model, alone))):
        unpadded_V = model.prompt_logits(alone)[0]
    torch.testing.assert_close(padded_V, unpadded_V, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_blocked_pairs_have_no_weight_and_the_others_are_renormalised(eager, samples):
    """softmax without some keys = the old weights of the others over their sum."""
    batch = eager.collate(samples, TEXTS)
    blocked_BQK = image_to_last(eager, batch)
    with probabilities(eager) as clean:
        eager(**batch)
    with probabilities(eager) as found, Knockout(eager, {"language.layers.0.attention": blocked_BQK}):
        eager(**batch)
    kept_BHQK = clean[0].masked_fill(blocked_BQK[:, None], 0)
    assert (found[0][blocked_BQK[:, None].expand_as(found[0])] == 0).all()
    torch.testing.assert_close(found[0], kept_BHQK / kept_BHQK.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_blocking_nothing_is_the_clean_run(sdpa, eager, samples, attention):
    model = sdpa if attention == "sdpa" else eager
    batch = model.collate(samples, TEXTS)
    nothing = torch.zeros_like(image_to_last(model, batch))
    with Knockout(model, everywhere(model, nothing)):
        found_BV = model.prompt_logits(batch)
    torch.testing.assert_close(found_BV, model.prompt_logits(batch), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_token_that_reads_nothing_is_its_embedding_and_its_mlps(sdpa, eager, samples, attention):
    """Llama's blocks then do h ← h + MLP(norm(h)), whatever stands before the token."""
    model = sdpa if attention == "sdpa" else eager
    batch = model.collate(samples, TEXTS)
    blocked_BQK = torch.zeros_like(image_to_last(model, batch))
    blocked_BQK[torch.arange(2), batch.prompt_end] = True
    with Knockout(model, everywhere(model, blocked_BQK)), Trace(model, ["language.embed"]) as acts:
        found_BV = model.prompt_logits(batch)
    language = model.module.model.language_model
    h_BD = acts["language.embed"][torch.arange(2), batch.prompt_end]
    for layer in language.layers:
        h_BD = h_BD + layer.mlp(layer.post_attention_layernorm(h_BD))
    torch.testing.assert_close(found_BV, model.module.lm_head(language.norm(h_BD)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_that_nobody_reads_might_as_well_be_missing(sdpa, samples):
    """Rotary positions are relative: blocking everything from the first two tokens is the sequence without them."""
    batch = sdpa.collate(samples[:1], TEXTS[:1])
    blocked_BQK = torch.zeros_like(image_to_last(sdpa, batch))
    blocked_BQK[:, 2:, :2] = True
    with Knockout(sdpa, everywhere(sdpa, blocked_BQK)):
        found_V = sdpa(**batch).logits[0, -1]
    shorter = {name: value[:, 2:] if value.ndim == 2 else value for name, value in batch.items()}
    torch.testing.assert_close(found_V, sdpa(**shorter).logits[0, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_cross_attention_the_answer_ignores_the_image(blip, samples):
    """Both questions are the same, so without the image both answers are; without the question, any question's are."""
    one, other = (blip.collate([sample], TEXTS[:1]) for sample in samples)
    patches = blip.image_positions(one).shape[1] + 1
    length = one["input_ids"].shape[1]
    seen = everywhere(blip, torch.ones(1, length, patches, dtype=torch.bool), "text.layers.{}.cross_attention")
    with Knockout(blip, seen):
        logits = [blip.prompt_logits(batch) for batch in (one, other)]
    torch.testing.assert_close(*logits)
    assert (blip.prompt_logits(one) - blip.prompt_logits(other)).abs().max() > 1e-4

    asked = blip.collate(samples[:1], ["is there a ring left of the green circle?"])
    assert asked["input_ids"].shape != one["input_ids"].shape
    answers = []
    for batch in (one, asked):
        read = torch.ones(1, 1, batch["input_ids"].shape[1], dtype=torch.bool)
        with Knockout(blip, everywhere(blip, read, "decoder.layers.{}.cross_attention")):
            answers.append(blip.prompt_logits(batch))
    torch.testing.assert_close(*answers)


@contextmanager
def sdpa_without(model, blocked):
    """BLIP's text attentions by torch's sdpa, which transformers does not offer for it, with pairs left out by hand."""

    def forward(module, blocked_BQK, hidden, attention_mask=None, encoder_hidden_states=None,
                encoder_attention_mask=None, **_):  # fmt: skip
        read, given = hidden, attention_mask
        if encoder_hidden_states is not None:
            read, given = encoder_hidden_states, encoder_attention_mask
        heads = (module.num_attention_heads, module.attention_head_size)
        q, k, v = (each.unflatten(-1, heads).transpose(1, 2)
                   for each in (module.query(hidden), module.key(read), module.value(read)))
        open_BHQK = ~blocked_BQK[:, None] if given is None else (given == 0) & ~blocked_BQK[:, None]
        context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=open_BHQK)
        return context.transpose(1, 2).flatten(2), None

    modules = {name: model.attentions[name].module for name in blocked}
    for name, module in modules.items():
        module.forward = partial(forward, module, blocked[name])
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


@pytest.mark.parametrize("kind", ["text.layers.{}.attention", "text.layers.{}.cross_attention",
                                  "decoder.layers.{}.attention", "decoder.layers.{}.cross_attention"])
@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_eager_blip_equals_sdpa(blip, samples, rows, kind):
    """Question → question and image, answer → itself (causal) and question; one question, and two of unequal length."""
    batch = blip.collate(samples[:rows], TEXTS[:rows], ["a red circle", "no"][:rows])
    lengths = {"text": batch["input_ids"].shape[1], "decoder": batch["decoder_input_ids"].shape[1]}
    tower = kind.split(".")[0]
    keys = lengths[tower] if kind.endswith(".attention") else lengths["text"]
    if kind == "text.layers.{}.cross_attention":
        keys = blip.image_positions(batch).shape[1] + 1
    blocked_BQK = torch.zeros(rows, lengths[tower], keys, dtype=torch.bool)
    blocked_BQK[:, 1:, 1:3] = True  # every position keeps the first
    blocked = everywhere(blip, blocked_BQK, kind)
    with Knockout(blip, blocked):
        eager = blip(**batch).logits
    with sdpa_without(blip, blocked):
        sdpa = blip(**batch).logits
    kept_BA = batch["decoder_input_ids"] != blip.config.text_config.pad_token_id
    torch.testing.assert_close(eager[kept_BA], sdpa[kept_BA], atol=1e-5, rtol=1e-5)
    assert (eager - blip(**batch).logits)[kept_BA].abs().max() > 1e-4


@torch.no_grad()
def test_padding_of_a_question_stays_padding(blip, samples):
    """The decoder's cross-attention keeps the mask of the shorter question beside the blocked pairs."""
    both, alone = blip.collate(samples, TEXTS), blip.collate(samples[1:], TEXTS[1:])

    def first_word(batch):
        blocked = torch.zeros(len(batch["input_ids"]), 1, batch["input_ids"].shape[1], dtype=torch.bool)
        blocked[..., 1] = True
        with Knockout(blip, everywhere(blip, blocked, "decoder.layers.{}.cross_attention")):
            return blip.prompt_logits(batch)[-1]

    torch.testing.assert_close(first_word(both), first_word(alone), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_functional_attention_is_renormalised_too(clip, samples):
    """open_clip calls torch's MultiheadAttention: its output is worked out from the weights, head by head."""
    batch = clip.collate(samples)
    attention = clip.module.visual.transformer.resblocks[1].attn
    heads, length = attention.num_heads, 1 + clip.image_positions(batch).shape[1]
    blocked_BQK = torch.zeros(2, length, length, dtype=torch.bool)
    blocked_BQK[0, 0, 3:9] = True
    blocked_BQK[1, 5] = True  # reads nothing at all
    given: list[torch.Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with Knockout(clip, {"vision.layers.1.attention": blocked_BQK}), Trace(clip, ["vision.layers.1.attn_out"]) as acts:
        clip(**batch)
    handle.remove()

    q, k, v = torch.nn.functional.linear(given[0], attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    scores_BHQK = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights_BHQK = scores_BHQK.exp() * ~blocked_BQK[:, None]
    weights_BHQK = weights_BHQK / weights_BHQK.sum(-1, keepdim=True).clamp_min(1e-30)
    expected_BQD = attention.out_proj((weights_BHQK @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(acts["vision.layers.1.attn_out"], expected_BQD, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_causal_tower_stays_causal(clip, samples):
    """With one more pair blocked, a later word still changes nothing at an earlier one."""
    batch = clip.collate(samples)
    length = batch["text"].shape[1]
    blocked_BQK = torch.zeros(2, length, length, dtype=torch.bool)
    blocked_BQK[:, 4, 2] = True
    change = TokenEdit(lambda acts_ND, modality_N, where: acts_ND + 1, tokens=[6])
    found = []
    for edit in (TokenEdit(lambda acts_ND, modality_N, where: acts_ND, tokens=[6]), change):
        with (
            Knockout(clip, everywhere(clip, blocked_BQK, "text.layers.{}.attention")),
            Edit(clip, "text.layers.0.resid_pre", edit),
            Trace(clip, ["text.layers.1.resid_post"]) as acts,
        ):
            clip(**batch)
        found.append(acts["text.layers.1.resid_post"])
    torch.testing.assert_close(found[0][:, :6], found[1][:, :6])
    assert (found[0][:, 6] - found[1][:, 6]).abs().max() > 1e-2


@torch.no_grad()
def test_what_cannot_be_masked_is_refused_in_one_line(sdpa, blip, samples):
    with pytest.raises(UnknownSite, match=r"language\.layers\.\*\.attention"):
        Knockout(sdpa, {"language.layers.9.attention": torch.zeros(1, 1, 1, dtype=torch.bool)})
    with pytest.raises(UnknownSite, match=r"decoder\.layers\.\*\.cross_attention"):
        Knockout(blip, {"vision.layers.0.attention": torch.zeros(1, 1, 1, dtype=torch.bool)})
    batch = sdpa.collate(samples[:1], TEXTS[:1], padding="left")
    blocked_BQK = image_to_last(sdpa, batch)
    with Knockout(sdpa, everywhere(sdpa, blocked_BQK)), pytest.raises(CmmaError, match="not decoding steps"):
        sdpa.generate(batch, 3, eos_token_id=None)
    clean = sdpa.prompt_logits(batch)
    with pytest.raises(ZeroDivisionError), Knockout(sdpa, everywhere(sdpa, blocked_BQK)):
        raise ZeroDivisionError
    assert torch.equal(sdpa.prompt_logits(batch), clean)  # released, also by an exception
