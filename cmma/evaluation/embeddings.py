"""Images and texts in the shared space of a dual encoder: the features behind CLIPScore, retrieval and distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cmma.console import progress
from cmma.data.samples import Sample
from cmma.errors import CmmaError
from cmma.hooks import Trace
from cmma.models.base import MultimodalModel

IMAGE_SITE, TEXT_SITE = "vision.embed", "text.embed"


@dataclass(frozen=True)
class Embeddings:
    """Projected embeddings, not normalised.

    Attributes:
        image_ND, text_ND: float32, row i is sample i.
        encoder: name of the model.
    """

    image_ND: np.ndarray
    text_ND: np.ndarray
    encoder: str


def embed(
    model: MultimodalModel, samples: Sequence[Sample], texts: Sequence[str] | None = None, batch_size: int = 64
) -> Embeddings:
    """Embed images and texts.

    Args:
        model: a dual encoder.
        texts: one per sample; default: the samples' captions.

    Raises:
        CmmaError: the model is no dual encoder.
    """
    if model.kind != "dual_encoder":
        raise CmmaError(f"{model.spec.name} does not embed images and texts; set metric.encoder to a dual encoder")
    texts = [sample.caption for sample in samples] if texts is None else texts
    images, words = [], []
    with progress("Embedding images and captions", total=len(samples)) as bar:
        for start in range(0, len(samples), batch_size):
            chunk = slice(start, start + batch_size)
            image_BD, text_BD = embed_batch(model, samples[chunk], texts[chunk])
            images.append(image_BD)
            words.append(text_BD)
            bar.advance(len(texts[chunk]))
    return Embeddings(np.concatenate(images), np.concatenate(words), model.spec.name)


@torch.inference_mode()
def embed_batch(
    model: MultimodalModel, samples: Sequence[Sample], texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the images and of the texts of one batch, float32[B, D] each, not normalised."""
    batch = model.collate(samples, texts=texts)
    with Trace(model, [IMAGE_SITE, TEXT_SITE]) as acts:
        model(**batch)
    return _rows(acts[IMAGE_SITE]), _rows(acts[TEXT_SITE])


def _rows(acts: torch.Tensor) -> np.ndarray:
    return acts.flatten(1).float().cpu().numpy()
