"""Run a model over samples and read every token through a dictionary, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmma.activations.capture import texts_of
from cmma.data.samples import Sample
from cmma.hooks.trace import Trace
from cmma.modality import Modality
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder

_CONTEXT = 4  # pooled vectors per modality, read only by dictionaries with cross-modal attention
_PIECE_MARKS = ("▁", "Ġ", "</w>")  # a space, as SentencePiece, byte-level BPE and CLIP's BPE write it


@dataclass(frozen=True, eq=False)
class EncodedSample:
    """The latents of one sample's tokens; dropped tokens and joint views are left out.

    Attributes:
        index: place in the list of samples.
        latents_TK: [tokens, latents], on the CPU.
        modality_T, position_T: code and position (in its own stream or tower) of each token.
        grid: (rows, columns) of the patches that see the whole image.
        patches_P: row in `latents_TK` of each patch, row by row; None where some patch yields no record.
        words_W: row in `latents_TK` of each textual token; tokens: their texts.
    """

    index: int
    latents_TK: Tensor
    modality_T: Tensor
    position_T: Tensor
    grid: tuple[int, int]
    patches_P: Tensor | None
    words_W: Tensor
    tokens: list[str]


@torch.no_grad()
def encode_samples(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], batch_size: int = 32,
    text: str = "caption",
) -> Iterator[EncodedSample]:
    """Encode samples in order. Memory: one batch of activations and one sample's latents.

    Args:
        model, sae, layer: the dictionary and the layer whose records it reads.
        text: what a generative model reads: "caption" (prompt and teacher-forced caption), "question" or "prompt".
    """
    sites = [entry.site for entry in model.record_sites(layer)]
    for start in range(0, len(samples), batch_size):
        part = samples[start:start + batch_size]
        texts = texts_of(part, text, model.spec.prompt) if model.kind == "generative" else (None, None)
        batch = model.collate(part, *texts)
        with Trace(model, sites, stop=True) as acts:
            model(**batch)
        records = model.records(acts, batch, layer)
        context = model.context(acts, batch, layer, _CONTEXT) if sae.attention is not None else None
        grid, patches_BP = model.image_grid(batch, layer), model.image_positions(batch, layer).cpu()
        ids_BS = batch["input_ids" if "input_ids" in batch else "text"].cpu()
        for row in range(len(part)):
            modality_S = records.modality[row]
            kept_S = (modality_S == Modality.VISUAL) | (modality_S == Modality.TEXTUAL)
            modality_T, position_T = modality_S[kept_S], records.position[row][kept_S]
            other_TCD = None if context is None else context[row][1 - modality_T.long()]
            latents_TK = sae.encode(records.vectors[row][kept_S].float(), modality_T, other_TCD).cpu()
            modality_T, position_T = modality_T.cpu(), position_T.cpu()
            words_W = (modality_T == Modality.TEXTUAL).nonzero()[:, 0]
            yield EncodedSample(
                start + row, latents_TK, modality_T, position_T, grid,
                _rows_of(patches_BP[row], modality_T, position_T), words_W,
                token_texts(model.tokenizer, ids_BS[row, position_T[words_W]].tolist()),
            )


def _rows_of(patches_P: Tensor, modality_T: Tensor, position_T: Tensor) -> Tensor | None:
    """The row of each patch position among the visual tokens."""
    is_it_PT = (position_T == patches_P[:, None]) & (modality_T == Modality.VISUAL)
    return is_it_PT.int().argmax(1) if is_it_PT.any(1).all() else None


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens as they read, spaces included. Knows transformers' tokenizers and open_clip's."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(inner, "convert_ids_to_tokens"):
        return [inner.decode([token]) for token in ids]
    pieces = inner.convert_ids_to_tokens(list(ids))
    if not any(mark in piece for piece in pieces for mark in _PIECE_MARKS):
        return [piece + " " for piece in pieces]  # whole words
    for mark in _PIECE_MARKS:
        pieces = [piece.replace(mark, " ") for piece in pieces]
    return pieces
