"""Architecture, tokenizer and folder of toy_sd: a Stable Diffusion pipeline for 48-pixel images.

As in Stable Diffusion 2 the autoencoder reduces eight times (6 × 6 latents), the text encoder is CLIP's, the U-Net has
residual and transformer blocks with cross-attention and linear projections, and it predicts v. The U-Net works at one
resolution, so every transformer block has 6 × 6 tokens.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cmma.artifacts.files import new_folder
from cmma.testbed.language import WORDS
from cmma.testbed.scenes import CANVAS

CONTEXT = 48
REDUCTION = 8
LATENT_SIDE = CANVAS // REDUCTION
START, END = "<|startoftext|>", "<|endoftext|>"


class ToySD(nn.Module):
    """The three networks of the pipeline in one module, so that one job can build, move and train them."""

    def __init__(self, vae: AutoencoderKL, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.vae, self.text_encoder, self.unet = vae, text_encoder, unet


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer in which every word and mark of the grammar is one token."""
    merges: dict[tuple[str, str], int] = {}
    pieces: dict[str, None] = {}
    for word in WORDS:
        # What the earlier merges leave of the word is joined from the left; these rank lower and so change no earlier
        # word.
        letters = [*word[:-1], word[-1] + "</w>"]
        built, *rest = _merged(letters, merges)
        for piece in rest:
            merges[built, piece] = len(merges)
            built += piece
        pieces |= dict.fromkeys(letters)
    pieces |= {left + right: None for left, right in merges}
    vocabulary = {piece: index for index, piece in enumerate((*pieces, START, END))}
    pairs: Any = list(merges)
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=CONTEXT)


def _merged(pieces: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: join the pair of the lowest rank until none is left."""
    while ranked := [(merges[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in merges]:
        _, i = min(ranked)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    return pieces


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction; sampling starts at the last step."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip


def build_model(
    seed: int, width: int = 96, text_layers: int = 3, vae_widths: tuple[int, ...] = (16, 32, 64, 64), channels: int = 8
) -> ToySD:
    """Untrained networks with the libraries' own initialisation."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(vae_widths),
        up_block_types=("UpDecoderBlock2D",) * len(vae_widths),
        block_out_channels=vae_widths, layers_per_block=1, latent_channels=channels, norm_num_groups=8,
        sample_size=CANVAS, scaling_factor=1.0,
    )  # fmt: skip
    with torch.no_grad():  # a narrow posterior at first: wide ones drown the image before there is anything to lose
        vae.quant_conv.bias[channels:] = -5.0
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, projection_dim=width,
        num_hidden_layers=text_layers, num_attention_heads=4, max_position_embeddings=CONTEXT, hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIDE, in_channels=channels, out_channels=channels, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), block_out_channels=(width,),
        cross_attention_dim=width, attention_head_dim=4, use_linear_projection=True, norm_num_groups=16,
    )  # fmt: skip
    return ToySD(vae, CLIPTextModel(text), unet)


def save_folder(model: ToySD, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` loads; complete or absent; `model` stays."""
    pipeline: Any = StableDiffusionPipeline(
        vae=_stored(model.vae, dtype), text_encoder=_stored(model.text_encoder, dtype),
        unet=_stored(model.unet, dtype), tokenizer=build_tokenizer(), scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with new_folder(folder) as made:
        pipeline.save_pretrained(made)
        # transformers loads the type that its configuration names, diffusers float32: the pipeline must agree.
        config = made / "text_encoder" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def load_folder(folder: Path) -> Any:
    """The pipeline in float32 (diffusers' default) through its own loader, without its progress bars."""
    diffusers_logging.disable_progress_bar()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _stored(network: Any, dtype: torch.dtype) -> Any:
    made = type(network) if isinstance(network, CLIPTextModel) else type(network).from_config
    copy = made(network.config)
    copy.load_state_dict(network.state_dict())
    return nn.Module.to(copy, dtype)  # diffusers' own `to` warns of layers to be kept in float32; there are none
