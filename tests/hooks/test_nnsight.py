"""Edits against nnsight, an independent implementation of interventions (Fiotto-Kaufman et al. 2024): bit for bit."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
import torch
from nnsight import NNsight
from PIL import Image
from torch import Tensor

from cmma.data.samples import Sample
from cmma.hooks import Edit, TokenEdit
from cmma.models import load_model
from cmma.models.spec import ModelSpec

LANGUAGE = "model.language_model.layers.2"
LLAVA_SITES = {
    "language.layers.2.resid_pre": (LANGUAGE, "input"),
    "language.layers.2.resid_post": (LANGUAGE, "output"),
    "language.layers.2.mlp_out": (f"{LANGUAGE}.mlp", "output"),
    "language.layers.2.attn_out": (f"{LANGUAGE}.self_attn", "tuple"),
    "language.layers.2.heads": (f"{LANGUAGE}.self_attn.o_proj", "input"),
    "projector.out": ("model.multi_modal_projector", "output"),
}
CLIP_SITES = {
    "vision.layers.1.resid_post": ("visual.transformer.resblocks.1", "output"),
    "vision.layers.1.attn_out": ("visual.transformer.resblocks.1.attn", "tuple"),
    "text.layers.1.mlp_out": ("text.transformer.resblocks.1.mlp", "output"),
    "text.embed": ("text", "output"),
}


def load(family: str, architecture: str):
    fields = {"weights": "random", "source": "", "n_layers": 4, "prompt": "Describe."}
    return load_model(ModelSpec(name=architecture, family=family, architecture=architecture, **fields))


def sample(seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=generator)
    return Sample(str(seed), Image.fromarray(pixels.numpy()), "a red circle")


@pytest.fixture(scope="module")
def llava():
    return load("llava", "llava-tiny")


@pytest.fixture(scope="module")
def clip():
    return load("clip", "clip-tiny")


def nonlinear(acts: Tensor) -> Tensor:
    return acts * 0.5 + acts.roll(1, dims=-1)


EDIT = TokenEdit(lambda acts_ND, modality_N, where: nonlinear(acts_ND), tokens="every")


def with_nnsight(module: torch.nn.Module, batch: dict[str, Tensor], path: str, port: str) -> Any:
    """The module's whole output when `nonlinear` is applied at a place by nnsight."""
    wrapped = NNsight(module)
    place = attrgetter(path)(wrapped)
    if port == "input":
        with wrapped.trace(**batch):
            place.input = nonlinear(place.input)
            result = wrapped.output.save()
    elif port == "tuple":
        with wrapped.trace(**batch):
            place.output = (nonlinear(place.output[0]), *place.output[1:])
            result = wrapped.output.save()
    else:
        with wrapped.trace(**batch):
            place.output = nonlinear(place.output)
            result = wrapped.output.save()
    return result


@pytest.mark.parametrize("site", LLAVA_SITES)
@torch.no_grad()
def test_patched_logits_equal_nnsight(llava, site):
    batch = llava.collate([sample(0), sample(1)], ["Is it red?", "How many are there?"])
    clean = llava(**batch).logits
    with Edit(llava, site, EDIT):
        ours = llava(**batch).logits
    theirs = with_nnsight(llava.module, dict(batch), *LLAVA_SITES[site]).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, clean)


@pytest.mark.parametrize("site", CLIP_SITES)
@torch.no_grad()
def test_patched_embeddings_equal_nnsight(clip, site):
    batch = clip.collate([sample(0), sample(1)])
    with Edit(clip, site, EDIT):
        ours = torch.stack(clip.embeddings(clip(**batch)))
    theirs = torch.stack(with_nnsight(clip.module, dict(batch), *CLIP_SITES[site])[:2])
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, torch.stack(clip.embeddings(clip(**batch))))


@torch.no_grad()
def test_generation_under_an_edit_equals_nnsight_without_a_cache(llava):
    """Every token of every step edited: cached decoding against nnsight's pass over the whole text so far."""
    batch = llava.collate([sample(0)], ["Is it red?"], padding="left")
    site = "language.layers.2.resid_post"
    with Edit(llava, site, EDIT):
        ours = llava.generate(batch, 5, eos_token_id=None)[0]
    inputs = dict(batch)
    for _ in range(5):
        logits = with_nnsight(llava.module, inputs, *LLAVA_SITES[site]).logits
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits[:, -1:].argmax(-1)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    new = inputs["input_ids"][0, batch["input_ids"].shape[1] :]
    assert ours == llava.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert ours != llava.generate(batch, 5, eos_token_id=None)[0]
