"""Cross-attention maps and prompt swaps on a tiny Stable Diffusion, against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.cross_attention import noting_attention
from cmma.causal.method_configs import CrossAttentionMapsConfig, PromptSwapConfig
from cmma.causal.methods import cross_attention_maps, prompt_swap
from cmma.causal.methods.registry import run_method
from cmma.control.trials import draw_trials
from cmma.errors import ConfigError, DataError
from cmma.hooks import Trace
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples

SAMPLES = [s for s in generate_samples("balanced", 0, 20) if all(o["visible"] for o in s.objects)][:3]
CAPTIONS = [sample.caption for sample in SAMPLES]


@pytest.fixture(scope="module")
def tiny_sd():
    fields = {"name": "tiny", "family": "stable_diffusion", "weights": "random", "source": "", "n_layers": 4}
    return load_model(ModelSpec(architecture="stable-diffusion-tiny", **fields))


@torch.no_grad()
def test_probabilities_are_the_softmax_of_the_prompts_side(tiny_sd):
    """Head by head from the weights, for one block and two steps; the images stay the same."""
    block = tiny_sd.site("unet.blocks.2.attn2_out").module
    inputs = []
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((args[0], kwargs["encoder_hidden_states"])), with_kwargs=True)
    plain = tiny_sd.generate_images(CAPTIONS, [1, 2, 3], 2, 3.0)
    handle.remove()
    with noting_attention(tiny_sd, 3) as sums:
        images = tiny_sd.generate_images(CAPTIONS, [1, 2, 3], 2, 3.0)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(plain, images, strict=True))
    expected = 0
    for states, text in inputs:
        width = block.to_q.out_features // block.heads
        for head in range(block.heads):
            rows = slice(head * width, (head + 1) * width)
            query, key = states[3:] @ block.to_q.weight[rows].T, text[3:] @ block.to_k.weight[rows].T
            expected = expected + (query @ key.transpose(1, 2) / width**0.5).softmax(-1) / block.heads
    torch.testing.assert_close(sums.sums[2], expected, rtol=1e-4, atol=1e-5)
    maps_BSYX = sums.maps(8)
    assert maps_BSYX.shape == (3, 32, 8, 8)
    assert (maps_BSYX >= 0).all()
    same_size = [s for s in sums.sums.values() if s.shape[1] == 64]  # an equal grid is not resampled
    assert same_size
    only = type(sums)(3)
    only.sums = {0: sums.sums[0]}
    torch.testing.assert_close(only.maps(8).flatten(2).transpose(1, 2), sums.sums[0])
    assert type(block.processor).__name__ != "_Noting"


@torch.no_grad()
def test_a_swapped_state_of_every_token_is_the_other_prompt(tiny_sd):
    swap = prompt_swap._Swap(tiny_sd, TraceConfig(method="prompt_swap"))
    trials = draw_trials(SAMPLES, "shape", 0)
    other = tiny_sd.encode_prompts([trial.changed_prompt() for trial in trials])
    for site in swap.text_sites():
        mixed = swap.mixed(trials, site, "every token")
        if site != "text.layers.0.attn_out":  # what one attention adds is not the whole state
            torch.testing.assert_close(mixed, other, rtol=1e-4, atol=1e-4)
    # Words of equal length: at the embeddings, the changed words are all of the difference.
    torch.testing.assert_close(swap.mixed(trials, "text.embed", "changed words"), other, rtol=1e-4, atol=1e-4)
    plain = tiny_sd.encode_prompts([trial.sample.caption for trial in trials])
    torch.testing.assert_close(swap.mixed(trials, "text.embed", "end and padding"), plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_groups_of_tokens_do_not_overlap(tiny_sd):
    swap = prompt_swap._Swap(tiny_sd, TraceConfig(method="prompt_swap"))
    trial = draw_trials(SAMPLES, "color", 0)[0]
    groups = [swap._tokens([trial.sample.caption], [trial.changed_prompt()], name)[0] for name in prompt_swap.TOKENS]
    assert not (groups[0] & groups[1]).any()
    assert not (groups[0] & groups[2]).any()
    assert groups[3].all()
    with Trace(tiny_sd, ["text.embed"]) as acts:
        tiny_sd.encode_prompts([trial.sample.caption])
    assert acts["text.embed"].shape[1] == len(groups[0])


def test_a_model_that_makes_no_scenes_and_one_that_makes_no_images_are_named(tiny_sd, tiny):
    for method, message in (("cross_attention_maps", "shows its prompt"), ("prompt_swap", "shows its prompt")):
        config = TraceConfig(
            method=method, max_samples=2, cross_attention_maps=CrossAttentionMapsConfig(steps=2),
            prompt_swap=PromptSwapConfig(steps=2, factors=["shape"]),
        )  # fmt: skip
        with pytest.raises(DataError, match=message):
            run_method(tiny_sd, SAMPLES, config)
        with pytest.raises(ConfigError, match="toy_sd"):
            run_method(tiny, SAMPLES, config)


def test_agreement_of_a_map_with_a_mask_by_hand():
    heat_YX, mask_YX = np.zeros((48, 48)), np.zeros((48, 48), dtype=bool)
    heat_YX[16:32, 0:16], mask_YX[16:32, 8:16] = 1.0, True
    assert cross_attention_maps._agreement(heat_YX, mask_YX, cell=3, threshold=0.4) == {"iou": 0.5, "pointing": 1.0}
    assert cross_attention_maps._agreement(heat_YX, mask_YX, cell=4, threshold=0.4)["pointing"] == 0.0
