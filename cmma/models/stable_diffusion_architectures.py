"""Published Stable Diffusion architectures, written down so that random weights need no network.

Values are those of the component configurations of `stable-diffusion-2-1` (v-prediction, 768 pixels).
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cmma.errors import ConfigError

START, END = "<|startoftext|>", "<|endoftext|>"
_OPEN_CLIP_MARKS = {"<start_of_text>": START, "<end_of_text>": END}

ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "stable-diffusion-2-1": {
        "text_encoder": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "projection_dim": 512, "hidden_act": "gelu", "max_position_embeddings": 77,
        },
        "unet": {
            "sample_size": 96, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
            "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024,
        },
        "vae": {
            "sample_size": 768, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
            "norm_num_groups": 32,
        },
    },
    "stable-diffusion-tiny": {
        "text_encoder": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
            "projection_dim": 32, "hidden_act": "gelu", "max_position_embeddings": 32, "initializer_factor": 5.0,
        },
        "unet": {
            "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": (2, 4),
            "cross_attention_dim": 32, "norm_num_groups": 8,
        },
        "vae": {"sample_size": 16, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    },
}  # fmt: skip
"""By name: sizes of the three networks."""


def architecture(name: str | None) -> dict[str, dict[str, Any]]:
    """The architecture called `name`. Raises ConfigError with the known names."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"model.architecture={name!r} is unknown; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_tokenizer(length: int) -> CLIPTokenizer:
    """CLIP's tokenizer from open_clip's copy of its vocabulary; pads with "!" (id 0) as Stable Diffusion 2 does."""
    source = SimpleTokenizer()
    vocabulary = {_OPEN_CLIP_MARKS.get(piece, piece): index for piece, index in source.encoder.items()}
    merges: Any = list(source.bpe_ranks)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=length)


def build_pipeline(sizes: dict[str, dict[str, Any]]) -> StableDiffusionPipeline:
    """The pipeline of an architecture with the libraries' own initialisation, on the current default device.

    All but the last resolution of the U-Net have cross-attention; the noise schedule is Stable Diffusion's.
    """
    tokenizer = build_tokenizer(sizes["text_encoder"]["max_position_embeddings"])
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **sizes["text_encoder"],
    )  # fmt: skip
    depth = len(sizes["unet"]["block_out_channels"])
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",) * (depth - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (depth - 1),
        use_linear_projection=True, **sizes["unet"],
    )  # fmt: skip
    levels = len(sizes["vae"]["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4, scaling_factor=0.18215, **sizes["vae"],
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
