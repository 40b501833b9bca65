"""Architecture, tokenizer and processor of toy_llava and toy_llava_large: LLaVA-1.5, some thousand times smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)  # fmt: skip

from cmma.artifacts.files import new_folder
from cmma.testbed.language import WORDS
from cmma.testbed.scenes import CANVAS

PATCH = 8
N_PATCHES = (CANVAS // PATCH) ** 2
WIDTH = 96
PIXEL_MEAN = (0.44, 0.44, 0.44)
PIXEL_STD = (0.14, 0.14, 0.14)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
ROLES = ("USER:", "ASSISTANT:", "\n")
PROMPT = "USER: <image>\n{question} ASSISTANT:"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the shapes grammar; text comes back with normal spacing before punctuation."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *ROLES, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = Regex(r"USER:|ASSISTANT:|\n|[A-Za-z]+|[^\sA-Za-z]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # only for its spacing
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left", model_max_length=512,
    )  # fmt: skip


def build_processor() -> LlavaProcessor:
    """Image preprocessing and tokenizer, as a LLaVA-1.5 checkpoint has them."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": CANVAS}, crop_size={"height": CANVAS, "width": CANVAS},
        image_mean=list(PIXEL_MEAN), image_std=list(PIXEL_STD),
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=build_tokenizer(), patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def build_config(n_layers: int = 12, width: int = WIDTH, vision_layers: int = 3) -> LlavaConfig:
    """LLaVA-1.5's configuration, small. The vision feature layer is the last one, so that every layer has an effect."""
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=vision_layers, num_attention_heads=4,
        image_size=CANVAS, patch_size=PATCH, projection_dim=width, hidden_act="gelu",
    )  # fmt: skip
    tokenizer: Any = build_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=n_layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=N_PATCHES,
        projector_hidden_act="gelu", pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip


def build_model(seed: int, config: LlavaConfig | None = None) -> LlavaForConditionalGeneration:
    """An untrained model; residual outputs start smaller with depth (GPT-2's rule), so twelve layers train steadily."""
    torch.manual_seed(seed)
    config = config or build_config()
    model = LlavaForConditionalGeneration(config)
    depth_scale = (2 * config.get_text_config().num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "language_model.layers" in name:
                weight.normal_(0, weight.shape[1] ** -0.5)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_(depth_scale)
            elif name.endswith(("linear_1.weight", "linear_2.weight", "lm_head.weight")):
                weight.normal_(0, weight.shape[1] ** -0.5)
            elif name.endswith("embed_tokens.weight"):
                weight.normal_(0, 1)
    return model


def save_folder(model: LlavaForConditionalGeneration, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a complete checkpoint folder that plain transformers loads; complete or absent, never half."""
    stored: Any = LlavaForConditionalGeneration(model.config)
    stored.to(dtype)
    stored.load_state_dict({name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    stored.generation_config.max_new_tokens = 64
    with new_folder(folder) as made:
        stored.save_pretrained(made, safe_serialization=True)
        build_processor().save_pretrained(made)
