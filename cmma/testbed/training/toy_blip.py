"""Architecture, tokenizer and processor of toy_blip: BLIP's question answering model, small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig

from cmma.artifacts.files import new_folder
from cmma.testbed.language import WORDS
from cmma.testbed.scenes import CANVAS
from cmma.testbed.training.toy_llava import PATCH, PIXEL_MEAN, PIXEL_STD

WIDTH, HEADS = 96, 4  # of both towers: the decoder reads the question encoder where that reads the vision tower
VISION_LAYERS, TEXT_LAYERS = 4, 4
MAX_LENGTH = 32
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")  # BERT's, and the decoder's start, as BLIP has them


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the shapes grammar; a text is `[CLS] words [SEP]`, an answer starts at `[DEC]`."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[^\sA-Za-z]"), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # only for its spacing
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", bos_token="[DEC]", pad_token="[PAD]",
        unk_token="[UNK]", padding_side="right", model_max_length=MAX_LENGTH,
    )  # fmt: skip


def build_processor() -> BlipProcessor:
    """Image preprocessing and tokenizer, as a BLIP checkpoint has them."""
    image_processor = BlipImageProcessor(
        size={"height": CANVAS, "width": CANVAS}, image_mean=list(PIXEL_MEAN), image_std=list(PIXEL_STD)
    )
    return BlipProcessor(image_processor, build_tokenizer())


def build_config(
    width: int = WIDTH, text_layers: int = TEXT_LAYERS, vision_layers: int = VISION_LAYERS
) -> BlipConfig:
    """BLIP's configuration, small. Question encoder and answer decoder have the same sizes, as in BLIP."""
    tokenizer: Any = build_tokenizer()
    vision = BlipVisionConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=vision_layers, num_attention_heads=HEADS,
        image_size=CANVAS, patch_size=PATCH, initializer_range=0.02,
    )  # fmt: skip
    text = BlipTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=text_layers, num_attention_heads=HEADS, max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.sep_token_id, sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def build_model(seed: int, config: BlipConfig | None = None) -> BlipForQuestionAnswering:
    """An untrained model. Matrices are drawn for unit gain; what is tied to the output words starts small.

    Positions in the image start as large as its patches (about 0.5): nothing but them tells where a patch is.
    """
    torch.manual_seed(seed)
    model = BlipForQuestionAnswering(config or build_config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("embeddings.weight"):
                weight.normal_(0, 0.05)
            elif name.endswith("vision_model.embeddings.position_embedding"):
                weight.normal_(0, 0.5)
            elif weight.ndim == 2:
                weight.normal_(0, weight.shape[1] ** -0.5)
    return model


def save_folder(model: BlipForQuestionAnswering, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a complete checkpoint folder that plain transformers loads; complete or absent, never half."""
    stored: Any = BlipForQuestionAnswering(model.config)
    stored.to(dtype)
    stored.load_state_dict({name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    with new_folder(folder) as made:
        stored.save_pretrained(made, safe_serialization=True)
        build_processor().save_pretrained(made)
