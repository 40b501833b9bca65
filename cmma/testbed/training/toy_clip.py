"""Architecture and tokenizer of toy_clip and toy_clip_large: open_clip's ViT CLIP, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cmma.artifacts.files import new_folder
from cmma.testbed.language import CONNECTIVES, WORDS
from cmma.testbed.scenes import CANVAS
from cmma.testbed.training.toy_llava import PATCH, PIXEL_MEAN, PIXEL_STD

CONTEXT = 48
START, END = "<start_of_text>", "<end_of_text>"  # the two highest ids, as in CLIP: open_clip pools text at the highest


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of captions with CLIP's start and end marks."""
    words = (word for word in WORDS if word not in CONNECTIVES)
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", *words, START, END))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[^\sA-Za-z]"), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # only for its spacing
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "<unk>", START, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token="<pad>", unk_token="<unk>",
        padding_side="right", model_max_length=CONTEXT,
    )  # fmt: skip


def build_config(width: int = 96, layers: int = 4) -> dict[str, Any]:
    """open_clip's `model_cfg`."""
    return {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": CANVAS, "patch_size": PATCH, "layers": layers, "width": width, "head_width": 32,
            "mlp_ratio": 3.0,
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": len(build_tokenizer()), "layers": layers, "width": width,
            "heads": width // 32, "mlp_ratio": 3.0, "hf_tokenizer_name": "toy_clip",
        },
    }  # fmt: skip


def build_model(seed: int, config: dict[str, Any] | None = None) -> open_clip.CLIP:
    """An untrained model with open_clip's own initialisation."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**(config or build_config()))


def save_folder(
    model: open_clip.CLIP, config: dict[str, Any], folder: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads; complete or absent."""
    state = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    preprocess = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    with new_folder(folder) as made:
        save_file(state, made / "open_clip_model.safetensors", metadata={"format": "pt"})
        build_tokenizer().save_pretrained(made)
        (made / "open_clip_config.json").write_text(text + "\n")


def load_folder(folder: Path) -> tuple[open_clip.CLIP, Any, HFTokenizer]:
    """Model (float32, eval), image transform and tokenizer through open_clip's own loader."""
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return model.eval(), transform, open_clip.get_tokenizer(name)
