"""Published BLIP architectures, written down so that random weights need no network.

Values are those of the `config.json` and `preprocessor_config.json` of `Salesforce/blip-vqa-base`.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import BlipConfig, BlipImageProcessor, BlipProcessor, PreTrainedTokenizerFast

from cmma.errors import ConfigError

PAD, UNKNOWN, CLS, SEP, START, ENCODE = 0, 100, 101, 102, 30_522, 30_523
"""Ids of BERT's marks, and of the two that BLIP adds: `[DEC]` starts an answer, `[ENC]` is not used for questions."""

VOCABULARY = 30_524
_FIRST_BYTE = 1000

ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "blip-vqa-base": {
        "vision": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 384, "patch_size": 16,
        },
        "text": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        },
    },
    "blip-tiny": {
        "vision": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 24, "patch_size": 8, "initializer_range": 0.2,
        },
        "text": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "initializer_range": 0.2,
        },
    },
}  # fmt: skip
"""By name: sizes of the vision tower, and of the question encoder and the answer decoder, which are alike."""


def architecture(name: str | None) -> dict[str, dict[str, Any]]:
    """The architecture called `name`. Raises ConfigError with the known names."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"model.architecture={name!r} is unknown; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_config(sizes: dict[str, dict[str, Any]]) -> BlipConfig:
    """The transformers configuration of an architecture.

    The vision tower's published initialisation range is 1e-10, at which random weights make all images alike; 0.02 is
    taken instead, as in the text tower.
    """
    text = {
        "vocab_size": VOCABULARY, "bos_token_id": START, "sep_token_id": SEP, "eos_token_id": SEP, "pad_token_id": PAD,
    }  # fmt: skip
    return BlipConfig(
        vision_config={"initializer_range": 0.02} | sizes["vision"], text_config=text | sizes["text"]
    )


def build_processor(sizes: dict[str, dict[str, Any]]) -> BlipProcessor:
    """Image preprocessing exactly as published, text through `byte_tokenizer`."""
    side = sizes["vision"]["image_size"]
    return BlipProcessor(BlipImageProcessor(size={"height": side, "width": side}), byte_tokenizer())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for random weights, which have no language anyway: UTF-8 bytes between BERT's `[CLS]` and `[SEP]`.

    Byte b is 1000 + b; the marks have the ids that they have in the published model.
    """
    marks = {"[PAD]": PAD, "[UNK]": UNKNOWN, "[CLS]": CLS, "[SEP]": SEP, "[DEC]": START, "[ENC]": ENCODE}
    vocabulary = marks | {f"<0x{byte:02X}>": _FIRST_BYTE + byte for byte in range(256)}
    taken = set(vocabulary.values())
    vocabulary |= {f"[unused{index}]": index for index in range(VOCABULARY) if index not in taken}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in marks])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
        bos_token="[DEC]", model_max_length=512,
    )  # fmt: skip
