"""Retrieval with toy_clip, measured through open_clip on the stored weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from cmma.testbed.generate import generate_samples
from cmma.testbed.training.bootstrap import Estimate, image_ratio
from cmma.testbed.training.job import EVALUATION_SEED
from cmma.testbed.training.toy_clip import load_folder

BLOCK = 100


def measure(folder: Path, quick: bool) -> dict[str, dict[str, Estimate]]:
    """All metrics of a stored toy_clip: 2,000 images, 200 when `quick`."""
    return {"retrieval_balanced": retrieval(folder, 200 if quick else 2000, EVALUATION_SEED)}


@torch.inference_mode()
def retrieval(folder: Path, n_images: int, seed: int) -> dict[str, Estimate]:
    """R@1 and R@5 among 100 on the balanced split, both directions, over disjoint blocks of 100 images.

    Ties count as misses: the right candidate must score strictly higher than all but k − 1 others.
    """
    model, transform, tokenizer = load_folder(folder)
    samples = list(generate_samples("balanced", 0, n_images, seed, questions_per_image=0))
    images, texts = [], []
    for start in range(0, n_images, BLOCK):
        block = samples[start : start + BLOCK]
        images.append(F.normalize(model.encode_image(torch.stack([transform(s.image) for s in block])), dim=-1))
        texts.append(F.normalize(model.encode_text(tokenizer([s.caption for s in block])), dim=-1))
    estimates = {}
    for name, queries, candidates in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        rank_N = np.concatenate([_rank(q @ c.T) for q, c in zip(queries, candidates, strict=True)])
        for k in (1, 5):
            estimates[f"{name}_r@{k}"] = image_ratio(rank_N < k, np.ones(len(rank_N)))
    return estimates


def _rank(scores_QC: torch.Tensor) -> np.ndarray:
    """How many other candidates score at least as high as the right one (the diagonal): int [Q]."""
    at_least_QC = scores_QC >= scores_QC.diagonal()[:, None]
    return (at_least_QC.sum(dim=1) - 1).numpy()
