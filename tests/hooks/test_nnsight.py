"""Edits against nnsight, an independent implementation of interventions (Fiotto-Kaufman et al. 2024): bit for bit.

Every family that ships trained: the residual stream, MLP, attention and heads of each tower, and generation. Two things
do not exist, in the models and so in nnsight: heads of open_clip's towers, whose attention is one function that never
calls its output projection, and generation by a dual encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from nnsight import NNsight
from torch import Tensor, nn
from transformers import DynamicCache

from cmma.config import load_group
from cmma.hooks import Edit, TokenEdit
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.models.sites import UnknownSite
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples

# BLIP's modules called `output` are nnsight's `E_output`: `output` is what a module gives.
pytestmark = pytest.mark.filterwarnings("ignore:Module .* has a submodule named 'output'")

STEPS = 4
QUESTIONS = ["is there a red circle left of the blue ring?", "what?"]
Place = tuple[str, str, str]
"""Our site, nnsight's path below the whole module, and which side of it is edited."""


def llama(layer: str) -> list[Place]:
    """Sites of a layer of a LLaVA's language model."""
    below = f"model.language_model.layers.{layer}"
    return [
        (f"language.layers.{layer}.resid_pre", below, "input"),
        (f"language.layers.{layer}.resid_post", below, "output"),
        (f"language.layers.{layer}.mlp_out", f"{below}.mlp", "output"),
        (f"language.layers.{layer}.attn_out", f"{below}.self_attn", "output"),
        (f"language.layers.{layer}.heads", f"{below}.self_attn.o_proj", "input"),
    ]


def pre_norm(tower: str, below: str, heads: str) -> list[Place]:
    """Sites of a layer of a pre-norm encoder in transformers; `heads` is its attention's last linear map."""
    return [
        (f"{tower}.resid_post", below, "output"),
        (f"{tower}.mlp_out", f"{below}.mlp", "output"),
        (f"{tower}.attn_out", f"{below}.self_attn", "output"),
        (f"{tower}.heads", f"{below}.self_attn.{heads}", "input"),
    ]


def bert(tower: str, below: str) -> list[Place]:
    """Sites of a layer of BLIP's question encoder or answer decoder."""
    attention, cross = f"{below}.attention.E_output.dense", f"{below}.crossattention.E_output.dense"
    return [
        (f"{tower}.resid_post", below, "output"),
        (f"{tower}.mlp_out", f"{below}.E_output.dense", "output"),
        (f"{tower}.attn_out", attention, "output"),
        (f"{tower}.heads", attention, "input"),
        (f"{tower}.cross_attn_out", cross, "output"),
        (f"{tower}.cross_heads", cross, "input"),
    ]


def open_clip(tower: str, below: str) -> list[Place]:
    """Sites of a layer of open_clip."""
    return [
        (f"{tower}.resid_post", below, "output"),
        (f"{tower}.mlp_out", f"{below}.mlp", "output"),
        (f"{tower}.attn_out", f"{below}.attn", "output"),
    ]


def unet(block: int, below: str) -> list[Place]:
    """Sites of a transformer block of a U-Net: self-attention is attn1, attn2 reads the text."""
    ports = (
        ("resid_post", "", "output"), ("mlp_out", ".ff", "output"),
        ("attn1_out", ".attn1", "output"), ("attn1_heads", ".attn1.to_out.0", "input"),
        ("attn2_out", ".attn2", "output"), ("attn2_heads", ".attn2.to_out.0", "input"),
    )  # fmt: skip
    return [(f"unet.blocks.{block}.{name}", below + path, port) for name, path, port in ports]


PLACES: dict[str, list[Place]] = {
    "toy_llava": [*llama("5"), ("projector.out", "model.multi_modal_projector", "output")],
    "toy_clip": [
        *open_clip("vision.layers.1", "visual.transformer.resblocks.1"),
        *open_clip("text.layers.1", "text.transformer.resblocks.1"),
        ("text.embed", "text", "output"),
    ],
    "toy_blip": [
        *pre_norm("vision.layers.1", "vision_model.encoder.layers.1", "projection"),
        *bert("text.layers.1", "text_encoder.encoder.layer.1"),
        *bert("decoder.layers.1", "text_decoder.bert.encoder.layer.1"),
    ],
    "toy_sd": [
        *pre_norm("text.layers.1", "text_encoder.encoder.layers.1", "out_proj"),
        *unet(1, "unet.mid_block.attentions.0.transformer_blocks.0"),
    ],
}
RESULTS: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "toy_llava": ("", lambda output: output.logits),
    "toy_clip": ("", lambda output: torch.stack(output[:2])),
    "toy_blip": ("text_decoder", lambda output: output.logits),
    "toy_sd": ("", lambda output: output.prediction),
}
"""Module whose output is compared ("" = the whole), and the tensor in it."""


@cache
def load(name: str) -> MultimodalModel:
    return load_model(ModelSpec(**load_group("model", name)))


def collate(name: str, rows: int = 2):
    texts = QUESTIONS[:rows] if load(name).kind == "generative" else None
    return load(name).collate(list(generate_samples("balanced", 0, rows)), texts)


def nonlinear(acts: Tensor) -> Tensor:
    return acts * 0.5 + acts.roll(1, dims=-1)


EDIT = TokenEdit(lambda acts_ND, modality_N, where: nonlinear(acts_ND), tokens="every")


def with_nnsight(module: nn.Module, inputs: dict[str, Any], path: str, port: str, result: str = "") -> Any:
    """What a module gives when `nonlinear` is applied at a place by nnsight."""
    wrapped = NNsight(module)
    place, last = attrgetter(path)(wrapped), attrgetter(result)(wrapped) if result else wrapped
    with wrapped.trace(**inputs):
        if port == "input":
            place.input = nonlinear(place.input)
        else:
            given = place.output
            place.output = (nonlinear(given[0]), *given[1:]) if isinstance(given, tuple) else nonlinear(given)
        found = last.output.save()
    return found


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Everything that a module gives within the block, by a plain hook."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda _, __, output: found.append(output))
    yield found
    handle.remove()


@pytest.mark.parametrize(("name", "place"), [
    pytest.param(name, place, id=f"{name}-{place[0]}") for name, places in PLACES.items() for place in places
])  # fmt: skip
@torch.no_grad()
def test_patched_outputs_equal_nnsight(name, place):
    """Of a padded batch of two."""
    model, batch = load(name), collate(name)
    result, tensor = RESULTS[name]
    site, path, port = place
    last = model.module.get_submodule(result)
    with outputs_of(last) as clean:
        model(**batch)
    with outputs_of(last) as ours, Edit(model, site, EDIT):
        model(**batch)
    theirs = with_nnsight(model.module, dict(batch), path, port, result)
    assert torch.equal(tensor(ours[0]), tensor(theirs))
    assert not torch.equal(tensor(ours[0]), tensor(clean[0]))


def test_towers_without_heads_say_so():
    with pytest.raises(UnknownSite, match="no sites of single heads"):
        load("toy_clip").n_heads("vision.layers.1.heads")


def greedy_with_nnsight(module: nn.Module, inputs: dict[str, Any], path: str, port: str, end: int) -> list[Tensor]:
    """Logits [1, V] of every step of cached greedy decoding up to the end token, each a pass that nnsight traces."""
    past, logits = DynamicCache(), []
    for _ in range(STEPS):
        output = with_nnsight(module, inputs | {"past_key_values": past, "use_cache": True}, path, port)
        logits.append(output.logits[:, -1])
        if int(logits[-1].argmax()) == end:
            break
        seen = inputs["attention_mask"]
        inputs = {name: value for name, value in inputs.items() if name != "pixel_values"} | {
            "input_ids": logits[-1].argmax(-1, keepdim=True),
            "attention_mask": torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1),
        }
    return logits


def check_steps(model: MultimodalModel, last: nn.Module, site: str, batch: Any, expected: list[Tensor]) -> None:
    with outputs_of(last) as clean:
        model.generate(batch, STEPS)
    with outputs_of(last) as ours, Edit(model, site, EDIT):
        model.generate(batch, STEPS)
    assert len(expected) > 1  # the prompt, and at least one token after a cache
    for output, logits_BV in zip(ours, expected, strict=True):
        assert torch.equal(output.logits[:, -1], logits_BV)
    assert not torch.equal(clean[1].logits[:, -1], expected[1])


@pytest.mark.parametrize("place", llama("5")[1:], ids=lambda place: place[0])
@torch.no_grad()
def test_generation_by_llava_equals_nnsight(place):
    """Every token of every step edited; the logits of each step, and so the tokens."""
    model = load("toy_llava")
    batch = model.collate(list(generate_samples("balanced", 0, 1)), padding="left")  # a caption: answers are one word
    site, path, port = place
    inputs = {**batch, "logits_to_keep": 1}  # as generation does: the last bit depends on how many rows lm_head has
    end = model.module.generation_config.eos_token_id
    check_steps(model, model.module, site, batch, greedy_with_nnsight(model.module, inputs, path, port, end))


@pytest.mark.parametrize("place", bert("decoder.layers.1", "bert.encoder.layer.1"), ids=lambda place: place[0])
@torch.no_grad()
def test_generation_by_blip_equals_nnsight(place):
    """The answer decoder, which reads the question as the towers below leave it."""
    model, batch = load("toy_blip"), collate("toy_blip", 1)
    site, path, port = place
    with outputs_of(model.module.text_encoder) as question:
        model(**batch)
    start = batch["decoder_input_ids"]
    inputs = {
        "input_ids": start, "attention_mask": torch.ones_like(start),
        "encoder_hidden_states": question[0].last_hidden_state, "encoder_attention_mask": batch["attention_mask"],
    }  # fmt: skip
    decoder: Any = model.module.text_decoder
    end = model.config.text_config.sep_token_id
    check_steps(model, decoder, site, batch, greedy_with_nnsight(decoder, inputs, path, port, end))


@pytest.mark.parametrize("place", unet(1, "mid_block.attentions.0.transformer_blocks.0"), ids=lambda place: place[0])
@torch.no_grad()
def test_images_equal_those_of_nnsights_unet(place):
    """The sampling loop with guidance written out, its U-Net traced by nnsight in every step."""
    model: Any = load("toy_sd")
    site, path, port = place
    prompts, seeds, guidance = ["a red circle.", "a blue ring."], [3, 4], 2.0
    clean = model.generate_images(prompts, seeds, STEPS, guidance)
    with Edit(model, site, EDIT):
        ours = model.generate_images(prompts, seeds, STEPS, guidance)

    pipe = model.pipeline
    text_BSD = torch.cat([pipe.text_encoder(model.token_ids(texts))[0] for texts in (["", ""], prompts)])
    pipe.scheduler.set_timesteps(STEPS)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    latents = randn_tensor((2, channels, side, side), generator=generators) * pipe.scheduler.init_noise_sigma
    for step in pipe.scheduler.timesteps:
        inputs = {"sample": torch.cat([latents] * 2), "timestep": step, "encoder_hidden_states": text_BSD}
        empty, prompted = with_nnsight(pipe.unet, inputs, path, port).sample.chunk(2)
        latents = pipe.scheduler.step(empty + guidance * (prompted - empty), step, latents).prev_sample
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    theirs = pipe.image_processor.postprocess(pixels)
    for image, other, unedited in zip(ours, theirs, clean, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(other))
        assert not np.array_equal(np.asarray(image), np.asarray(unedited))
