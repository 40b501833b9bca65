"""Edits against nnsight, an independent implementation of interventions (Fiotto-Kaufman et al. 2024): bit for bit.

On the shapes world's small models, which are of the published classes: residual stream, MLP, attention and single heads
of every tower, and generation: LLaVA's and BLIP's words, Stable Diffusion's images.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
import torch
from nnsight import NNsight
from torch import Tensor

from cmma.causal.modules import head_parts
from cmma.config import load_group
from cmma.hooks import Edit, TokenEdit
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples

LLAMA, CLIP_VISION = "model.language_model.layers.2", "model.vision_tower.encoder.layers.1"
BLIP_VISION, BLIP_TEXT, BLIP_DECODER = (
    "vision_model.encoder.layers.1", "text_encoder.encoder.layer.1", "text_decoder.bert.encoder.layer.1"
)  # fmt: skip
SD_TEXT, SD_BLOCK = "text_encoder.encoder.layers.1", "unet.mid_block.attentions.0.transformer_blocks.0"
SITES = {
    "toy_llava": {
        "language.layers.2.resid_pre": (LLAMA, "input"),
        "language.layers.2.resid_post": (LLAMA, "output"),
        "language.layers.2.mlp_out": (f"{LLAMA}.mlp", "output"),
        "language.layers.2.attn_out": (f"{LLAMA}.self_attn", "tuple"),
        "language.layers.2.heads": (f"{LLAMA}.self_attn.o_proj", "input"),
        "vision.layers.1.resid_post": (CLIP_VISION, "output"),
        "vision.layers.1.attn_out": (f"{CLIP_VISION}.self_attn", "tuple"),
        "projector.out": ("model.multi_modal_projector", "output"),
    },
    "toy_blip": {
        "vision.layers.1.resid_post": (BLIP_VISION, "output"),
        "vision.layers.1.mlp_out": (f"{BLIP_VISION}.mlp", "output"),
        "vision.layers.1.attn_out": (f"{BLIP_VISION}.self_attn", "tuple"),
        "vision.layers.1.heads": (f"{BLIP_VISION}.self_attn.projection", "input"),
        "text.layers.1.resid_post": (BLIP_TEXT, "output"),
        "text.layers.1.mlp_out": (f"{BLIP_TEXT}.output.dense", "output"),
        "text.layers.1.attn_out": (f"{BLIP_TEXT}.attention.output.dense", "output"),
        "text.layers.1.heads": (f"{BLIP_TEXT}.attention.output.dense", "input"),
        "text.layers.1.cross_attn_out": (f"{BLIP_TEXT}.crossattention.output.dense", "output"),
        "text.layers.1.cross_heads": (f"{BLIP_TEXT}.crossattention.output.dense", "input"),
        "decoder.layers.1.resid_post": (BLIP_DECODER, "output"),
        "decoder.layers.1.cross_heads": (f"{BLIP_DECODER}.crossattention.output.dense", "input"),
    },
    "toy_clip": {
        "vision.layers.1.resid_post": ("visual.transformer.resblocks.1", "output"),
        "vision.layers.1.attn_out": ("visual.transformer.resblocks.1.attn", "tuple"),
        "text.layers.1.resid_post": ("text.transformer.resblocks.1", "output"),
        "text.layers.1.mlp_out": ("text.transformer.resblocks.1.mlp", "output"),
        "text.embed": ("text", "output"),
    },
    "toy_sd": {
        "text.layers.1.resid_post": (SD_TEXT, "output"),
        "text.layers.1.mlp_out": (f"{SD_TEXT}.mlp", "output"),
        "text.layers.1.attn_out": (f"{SD_TEXT}.self_attn", "tuple"),
        "text.layers.1.heads": (f"{SD_TEXT}.self_attn.out_proj", "input"),
        "unet.blocks.1.resid_post": (SD_BLOCK, "output"),
        "unet.blocks.1.mlp_out": (f"{SD_BLOCK}.ff", "output"),
        "unet.blocks.1.attn1_out": (f"{SD_BLOCK}.attn1", "output"),
        "unet.blocks.1.attn2_out": (f"{SD_BLOCK}.attn2", "output"),
        "unet.blocks.1.attn2_heads": (f"{SD_BLOCK}.attn2.to_out.0", "input"),
    },
}
HEADS = [(name, site) for name, sites in SITES.items() for site in sites if site.endswith("heads")]


def nonlinear(acts: Tensor) -> Tensor:
    return acts * 0.5 + acts.roll(1, dims=-1)


EDIT = TokenEdit(lambda acts_ND, modality_N, where: nonlinear(acts_ND), tokens="every")


@pytest.fixture(scope="module")
def loaded():
    """Name → a model of ours and one for nnsight, which leaves its wrappers on a module."""
    found: dict[str, tuple[Any, Any]] = {}

    def load(name: str) -> tuple[Any, Any]:
        if name not in found:
            spec = ModelSpec(**load_group("model", name))
            found[name] = (load_model(spec), load_model(spec))
        return found[name]

    return load


def collated(model, n: int = 2, padding: str = "right", answers: bool = True):
    """A batch of scenes: with their first questions and answers, or (CLIP, Stable Diffusion) their captions."""
    samples = list(generate_samples("balanced", 0, n))
    if model.kind != "generative":
        return model.collate(samples)
    asked = [sample.questions[0] for sample in samples]
    replies = [question.answer for question in asked] if answers else None
    return model.collate(samples, [question.question for question in asked], replies, padding=padding)


def read_out(output: Any) -> Tensor:
    """Logits, embeddings or the U-Net's prediction in what a model gives."""
    if hasattr(output, "logits"):
        return output.logits
    return output.prediction if hasattr(output, "prediction") else torch.stack(list(output[:2]))


def with_nnsight(model, batch: dict[str, Tensor], path: str, port: str, change: Any = nonlinear) -> Tensor:
    """The readout when `change` is applied at a place by nnsight."""
    wrapped = NNsight(model.module)
    place = attrgetter(path)(wrapped)
    whole = wrapped.text_decoder if model.family == "blip" else wrapped  # BLIP's own output holds no logits
    if port == "input":
        with wrapped.trace(**batch):
            place.input = change(place.input)
            result = whole.output.save()
    elif port == "tuple":
        with wrapped.trace(**batch):
            place.output = (change(place.output[0]), *place.output[1:])
            result = whole.output.save()
    else:
        with wrapped.trace(**batch):
            place.output = change(place.output)
            result = whole.output.save()
    return read_out(result)


@pytest.mark.parametrize(("name", "site"), [(name, site) for name, sites in SITES.items() for site in sites])
@torch.no_grad()
def test_edited_outputs_equal_nnsight(loaded, name, site):
    ours, theirs = loaded(name)
    batch = collated(ours)
    with Edit(ours, site, EDIT):
        edited = read_out(ours(**batch))
    assert torch.equal(edited, with_nnsight(theirs, dict(batch), *SITES[name][site]))
    assert not torch.equal(edited, read_out(ours(**batch)))


@pytest.mark.parametrize(("name", "site"), HEADS)
@torch.no_grad()
def test_one_head_edited_equals_nnsight(loaded, name, site):
    ours, theirs = loaded(name)
    batch, head = collated(ours), head_parts(ours, site)[1]

    def only_head(acts: Tensor) -> Tensor:
        changed = acts.clone()
        changed[..., head.channels] = nonlinear(acts)[..., head.channels]
        return changed

    with Edit(ours, site, TokenEdit(lambda acts_ND, modality_N, where: only_head(acts_ND), tokens="every")):
        edited = read_out(ours(**batch))
    assert torch.equal(edited, with_nnsight(theirs, dict(batch), *SITES[name][site], change=only_head))
    assert not torch.equal(edited, read_out(ours(**batch)))


@torch.no_grad()
def test_a_llava_generates_under_an_edit_as_nnsight_without_a_cache(loaded):
    """Every token of every step edited: cached decoding against nnsight's pass over the whole text so far."""
    ours, theirs = loaded("toy_llava")
    batch, site = collated(ours, 1, "left", answers=False), "language.layers.2.resid_post"
    with Edit(ours, site, EDIT):
        text = ours.generate(batch, 5, eos_token_id=None)[0]
    inputs = dict(batch)
    for _ in range(5):
        logits = with_nnsight(theirs, inputs, *SITES["toy_llava"][site])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits[:, -1:].argmax(-1)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    new = inputs["input_ids"][0, batch["input_ids"].shape[1] :]
    assert text == ours.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert text != ours.generate(batch, 5, eos_token_id=None)[0]


@pytest.mark.parametrize("site", ["text.layers.1.resid_post", "decoder.layers.1.resid_post"])
@torch.no_grad()
def test_a_blip_answers_under_an_edit_as_nnsight_without_a_cache(loaded, site):
    ours, theirs = loaded("toy_blip")
    batch = collated(ours, 1, answers=False)
    with Edit(ours, site, EDIT):
        text = ours.generate(batch, 4, eos_token_id=None)[0]
    inputs = dict(batch)
    for _ in range(4):
        logits = with_nnsight(theirs, inputs, *SITES["toy_blip"][site])
        inputs["decoder_input_ids"] = torch.cat([inputs["decoder_input_ids"], logits[:, -1:].argmax(-1)], dim=1)
    new = inputs["decoder_input_ids"][0, batch["decoder_input_ids"].shape[1] :]
    assert text == ours.tokenizer.decode(new, skip_special_tokens=True).strip()


@torch.no_grad()
def test_a_stable_diffusion_makes_the_image_that_nnsight_makes(loaded):
    """An edit of the U-Net in every denoising step, of the prompt's passes and the empty prompt's."""
    ours, theirs = loaded("toy_sd")
    prompts, seeds, site = ["a large solid red circle."], [3], "unet.blocks.1.attn2_out"
    with Edit(ours, site, EDIT):
        image = ours.generate_images(prompts, seeds, steps=3)[0]
    unet = theirs.module.unet
    wrapped = NNsight(unet)
    plain = unet.forward

    def traced(*args: Any, **inputs: Any) -> Any:
        unet.forward = plain
        place = attrgetter(SITES["toy_sd"][site][0].removeprefix("unet."))(wrapped)
        with wrapped.trace(*args, **inputs):
            place.output = nonlinear(place.output)
            result = wrapped.output.save()
        unet.forward = traced
        return result

    unet.forward = traced
    try:
        expected = theirs.generate_images(prompts, seeds, steps=3)[0]
    finally:
        unet.forward = plain
    assert image.tobytes() == expected.tobytes()
    assert image.tobytes() != ours.generate_images(prompts, seeds, steps=3)[0].tobytes()
