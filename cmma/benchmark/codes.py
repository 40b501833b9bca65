"""Planted samples through a dictionary, and the class that its latents seem to have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmma.benchmark.protocols import Dictionary
from cmma.features.specialisation import ActivationSums, specialise
from cmma.modality import Modality

PAIR = (Modality.VISUAL, Modality.TEXTUAL)
_TAU = 0.1  # the paper's threshold on S^v S^t
_FREE = 0.5  # the threshold that "closer to equal use than to use by one" amounts to


class Codes(NamedTuple):
    """Latents [N, K] of the image and text tokens of N samples."""

    visual_NK: Tensor
    textual_NK: Tensor

    @property
    def strongest_NK(self) -> Tensor:
        """The larger of both."""
        return torch.maximum(self.visual_NK, self.textual_NK)


def encode_tokens(found: Dictionary, acts_NMW: Tensor, in_context: bool = False) -> Codes:
    """Tokens [N, 2, W] of both modalities through a dictionary: each by itself, or with the other as its context."""
    modality_MN = torch.arange(2, dtype=torch.int8)[:, None].expand(2, len(acts_NMW))
    if in_context and found.attends:
        return Codes(*(found.encode(acts_NMW[:, m], modality_MN[m], acts_NMW[:, [1 - m]]) for m in PAIR))
    return Codes(*(found.encode(acts_NMW[:, m], modality_MN[m]) for m in PAIR))


class LatentClasses(NamedTuple):
    """Class of each latent [K] by two rules, as names of `cmma.testbed.planted.config.CLASSES`."""

    by_tau_K: np.ndarray
    """`cmma.features.specialisation`: the interval of S^v S^t against τ = 0.1; may be "mixed" or "dead"."""
    free_K: np.ndarray
    """shared where S^v S^t > ½, else that of the larger selectivity."""


def latent_classes(codes: Codes) -> LatentClasses:
    """What each latent's selectivities say it is."""
    n = len(codes.visual_NK)
    sums = ActivationSums(n, codes.visual_NK.shape[1])
    for modality, latents_NK in zip(PAIR, codes, strict=True):
        sums.add(latents_NK, torch.full((n,), int(modality)), torch.arange(n))
    table = specialise(sums, _TAU, n_resamples=200)
    larger_K = np.where(table["s_visual"] > table["s_textual"], "visual", "textual")
    return LatentClasses(
        table["class"].replace("cross_modal", "shared").to_numpy(),
        np.where(table["product"] > _FREE, "shared", larger_K),
    )
