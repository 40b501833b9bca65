"""Published LLaVA architectures, written down so that random weights need no network.

Values are those of the `config.json` and `preprocessor_config.json` of the hub repositories named in
`conf/model/llava7b.yaml`, `llava13b.yaml` and `llava_next.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from cmma.errors import ConfigError

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
WORDS, VOCABULARY = 32_000, 32_064
"""Llama and Mistral have 32,000 word pieces; `<image>` and `<pad>` follow; the rows are padded to a multiple of 64."""

VICUNA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for message in messages %}{{ '[INST] ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endfor %}"
)
_VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32_000,
}  # fmt: skip
_LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}  # fmt: skip
_LLAMA_13B = {
    **_LLAMA_7B, "hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 40,
}  # fmt: skip
_MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0, "sliding_window": None, "vocab_size": VOCABULARY,
}  # fmt: skip
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_TINY_VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 24, "patch_size": 8, "projection_dim": 32,
}  # fmt: skip
_TINY_TEXT = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A published architecture: sizes of its towers and what its processor does.

    Attributes:
        text: fields of the language model's configuration.
        template: chat template.
        tiles: resolutions of LLaVA-NeXT's image tiling; empty for LLaVA-1.5.
        vision: fields of the vision tower's configuration.
    """

    text: dict[str, Any]
    template: str
    tiles: list[list[int]] = field(default_factory=list)
    vision: dict[str, Any] = field(default_factory=lambda: dict(_VISION))


ARCHITECTURES = {
    "llava-1.5-7b": Architecture(_LLAMA_7B, VICUNA_TEMPLATE),
    "llava-1.5-13b": Architecture(_LLAMA_13B, VICUNA_TEMPLATE),
    "llava-v1.6-mistral-7b": Architecture(_MISTRAL_7B, MISTRAL_TEMPLATE, _PINPOINTS),
    "llava-tiny": Architecture(_TINY_TEXT, VICUNA_TEMPLATE, vision=_TINY_VISION),
    "llava-next-tiny": Architecture(_TINY_TEXT, MISTRAL_TEMPLATE, [[24, 48], [48, 24], [48, 48]], _TINY_VISION),
}
"""By name. The tiny ones (4 layers, width 32, 3 × 3 patches) are for tests and dry runs with random weights."""


def architecture(name: str | None) -> Architecture:
    """The architecture called `name`. Raises ConfigError with the known names."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"model.architecture={name!r} is unknown; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_config(arch: Architecture) -> LlavaConfig | LlavaNextConfig:
    """The transformers configuration of `arch`."""
    common: dict[str, Any] = {
        "vision_config": dict(arch.vision), "text_config": dict(arch.text), "image_token_id": WORDS,
        "pad_token_id": WORDS + 1, "projector_hidden_act": "gelu", "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "tie_word_embeddings": False,
    }  # fmt: skip
    return LlavaNextConfig(**common, image_grid_pinpoints=arch.tiles) if arch.tiles else LlavaConfig(**common)


def build_processor(arch: Architecture) -> ProcessorMixin:
    """Image preprocessing exactly as published, text through `byte_tokenizer`."""
    size, patch = arch.vision["image_size"], arch.vision["patch_size"]
    text: dict[str, Any] = {
        "tokenizer": byte_tokenizer(), "patch_size": patch, "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1, "image_token": IMAGE_TOKEN, "chat_template": arch.template,
    }  # fmt: skip
    image: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if arch.tiles:
        return LlavaNextProcessor(LlavaNextImageProcessor(**image, image_grid_pinpoints=arch.tiles), **text)
    return LlavaProcessor(CLIPImageProcessor(**image), **text)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for random weights, which have no language anyway: UTF-8 bytes at the ids Llama gives them.

    `<unk> <s> </s>` are 0–2, byte b is 3 + b, ids up to 31,999 are never produced, `<image>` is 32,000 and `<pad>`
    32,001, as in the published models. A sequence starts with `<s>`.
    """
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {f"<unused{index}>": index for index in range(len(vocabulary), WORDS)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in (IMAGE_TOKEN, PAD_TOKEN)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=PAD_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )  # fmt: skip
