"""The LAION aesthetic score: an MLP on unit-norm CLIP ViT-L/14 image embeddings, without activations.

768 → 1024 → 128 → 64 → 16 → 1 (improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE.pth`); the scale is that
of its raters, about 1 to 10.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cmma.artifacts.tensors import read_tensors
from cmma.errors import DataError

WIDTHS = (768, 1024, 128, 64, 16, 1)


def load_head(weights: Path) -> nn.Module:
    """The MLP. Raises DataError for a file that is not its weights."""
    # Dropout, which does nothing here, keeps the numbers of the published layers.
    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise(WIDTHS)):
        layers += [nn.Linear(wide, narrow)] + [nn.Dropout()] * (number < 3)
    head = nn.Sequential(*layers)
    given = {name.removeprefix("layers."): value for name, value in read_tensors(weights, DataError).items()}
    try:
        head.load_state_dict(given)
    except RuntimeError as error:
        raise DataError(f"{weights}: not the weights of the aesthetic head "
                        f"{'→'.join(map(str, WIDTHS))}; take sac+logos+ava1-l14-linearMSE.pth") from error
    return head.eval()


@torch.inference_mode()
def aesthetic_scores(head: nn.Module, image_ND: np.ndarray) -> np.ndarray:
    """float64[N]: scores of image embeddings [N, 768], which need not be normalised. Raises DataError for others."""
    if image_ND.shape[1] != WIDTHS[0]:
        raise DataError(f"the aesthetic head reads {WIDTHS[0]} dimensions (CLIP ViT-L/14), not {image_ND.shape[1]}")
    unit_ND = image_ND / np.linalg.norm(image_ND, axis=1, keepdims=True)
    return head(torch.from_numpy(unit_ND).float())[:, 0].double().numpy()
