"""CLIPScore and RefCLIPScore (Hessel et al. 2021, arXiv 2104.08718), from embeddings.

The published numbers are those of OpenAI's ViT-B/32 with the prefix below. With another encoder the definition is the
same and the number is not comparable; reports name the encoder. What torchmetrics calls CLIP score is another scale,
another default encoder and no prefix: it is `hundred_cosines` here.
"""

from __future__ import annotations

import numpy as np

PREFIX = "A photo depicts "
"""Put before every caption by the reference implementation."""


def cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """float64[N]: cosine of each pair of rows; NaN for a zero row."""
    a_ND, b_ND = np.asarray(a_ND, np.float64), np.asarray(b_ND, np.float64)
    with np.errstate(invalid="ignore"):
        return (a_ND * b_ND).sum(-1) / (np.linalg.norm(a_ND, axis=-1) * np.linalg.norm(b_ND, axis=-1))


def clip_score(image_ND: np.ndarray, caption_ND: np.ndarray) -> np.ndarray:
    """CLIPScore of each pair, float64[N]: 2.5 · max(cos, 0)."""
    return 2.5 * np.maximum(cosines(image_ND, caption_ND), 0)


def ref_clip_score(image_ND: np.ndarray, caption_ND: np.ndarray, references_NRD: np.ndarray) -> np.ndarray:
    """RefCLIPScore of each pair, float64[N]: harmonic mean of CLIPScore and the largest reference cosine (at least 0).

    Args:
        references_NRD: R reference captions of each image; rows that are all NaN pad images with fewer.
    """
    to_image_N = clip_score(image_ND, caption_ND)
    repeated_NRD = np.broadcast_to(np.asarray(caption_ND)[:, None], np.shape(references_NRD))
    to_reference_N = np.maximum(np.nanmax(cosines(repeated_NRD, references_NRD), axis=1), 0)
    total_N = to_image_N + to_reference_N
    return np.divide(2 * to_image_N * to_reference_N, total_N, out=np.zeros_like(total_N), where=total_N != 0)


def hundred_cosines(image_ND: np.ndarray, caption_ND: np.ndarray) -> np.ndarray:
    """100 · cos of each pair, float64[N]; torchmetrics' `CLIPScore` is max(mean, 0) of these."""
    return 100 * cosines(image_ND, caption_ND)
