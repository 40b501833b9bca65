"""Does a feature light up where its concept is? Pixel IoU of patch activations with exact object masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmma.console import progress
from cmma.data.concepts import named_objects
from cmma.data.samples import Sample
from cmma.features.concepts import halves
from cmma.features.encode import encode_samples
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder

_THRESHOLDS = np.linspace(0.0, 0.9, 10)  # as shares of the feature's largest activation on the selection half


def concept_mask(sample: Sample, concept: str) -> np.ndarray | None:
    """Pixels [height, width] of the objects that the concept names; None where the sample has no mask."""
    if sample.mask is None:
        return None
    return np.isin(sample.mask, [index + 1 for index in named_objects(concept, sample.objects)])


def cell_coverage(mask_HW: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Number of mask pixels in each patch [rows, cols]; pixel (y, x) lies in patch (⌊y·rows/H⌋, ⌊x·cols/W⌋)."""
    height, width = mask_HW.shape
    row_H, col_W = np.arange(height) * rows // height, np.arange(width) * cols // width
    cell_HW = row_H[:, None] * cols + col_W[None, :]
    return np.bincount(cell_HW.ravel(), weights=mask_HW.ravel(), minlength=rows * cols).reshape(rows, cols)


class MaskOverlap:
    """Streamed pixel IoU of binarised patch activations with concept masks, at several thresholds per feature.

    Intersection and union are pooled over images (as in network dissection). Two halves are kept apart: the threshold
    is chosen on half 0 and the IoU reported from half 1.
    """

    def __init__(self, thresholds_KT: Tensor) -> None:
        self.thresholds_KT = thresholds_KT.double()
        self.both_HKT = torch.zeros(2, *thresholds_KT.shape, dtype=torch.float64)
        self.either_HKT = torch.zeros(2, *thresholds_KT.shape, dtype=torch.float64)

    def add(self, acts_PK: Tensor, coverage_PK: Tensor, area_P: Tensor, half: int) -> None:
        """Add one image. `coverage_PK`: mask pixels of feature k's concept in patch p; `area_P`: pixels per patch."""
        on_PKT = (acts_PK.double()[..., None] > self.thresholds_KT).double()
        both_KT = (on_PKT * coverage_PK.double()[..., None]).sum(0)
        predicted_KT = (on_PKT * area_P.double()[:, None, None]).sum(0)
        self.both_HKT[half] += both_KT
        self.either_HKT[half] += predicted_KT + coverage_PK.double().sum(0)[:, None] - both_KT

    def result(self) -> tuple[Tensor, Tensor]:
        """(IoU [K] on the scoring half, chosen threshold [K]); IoU is NaN where the scoring half holds no pixel."""
        iou_HKT = self.both_HKT / self.either_HKT
        best_K = iou_HKT[0].nan_to_num(nan=-1.0).argmax(1, keepdim=True)
        return iou_HKT[1].gather(1, best_K)[:, 0], self.thresholds_KT.gather(1, best_K)[:, 0]


def mask_iou(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], concepts: Mapping[int, str],
    visual_maxima_NK: Tensor, batch_size: int = 32, text: str = "caption", seed: int = 0,
) -> pd.DataFrame:
    """Pixel IoU of each feature with the masks of its concept.

    Args:
        samples: the ones that the concepts were matched on, in the same order; those without a mask are left out.
        concepts: latent → concept.
        visual_maxima_NK: largest visual activation per sample and latent, which sets the scale of the thresholds.
        seed: of the halves, as in `match_concepts`: threshold and score never come from the same image.

    Returns:
        `feature, iou, iou_threshold`, one row per entry of `concepts`; NaN where no mask is known.
    """
    features = sorted(concepts)
    choose, _ = halves(len(samples), seed)
    half_N = np.ones(len(samples), dtype=int)
    half_N[choose] = 0
    scale_K = visual_maxima_NK[torch.from_numpy(choose)][:, features].amax(0)
    overlap = MaskOverlap(scale_K[:, None] * torch.from_numpy(_THRESHOLDS).float())
    masked = [index for index, sample in enumerate(samples) if sample.mask is not None] if features else []
    with progress("Comparing with object masks", total=len(masked)) as bar:
        for found in encode_samples(model, sae, layer, [samples[i] for i in masked], batch_size, text):
            bar.advance()
            if found.patches_P is None:
                continue
            sample = samples[masked[found.index]]
            masks = {name: concept_mask(sample, name) for name in set(concepts.values())}
            coverage = {name: cell_coverage(_square(mask_HW), *found.grid).ravel()
                        for name, mask_HW in masks.items() if mask_HW is not None}
            area_P = cell_coverage(_square(np.ones_like(sample.mask, dtype=bool)), *found.grid).ravel()
            coverage_PK = np.stack([coverage[concepts[feature]] for feature in features], axis=1)
            overlap.add(found.latents_TK[found.patches_P][:, features], torch.from_numpy(coverage_PK),
                        torch.from_numpy(area_P), int(half_N[masked[found.index]]))
    iou_K, threshold_K = overlap.result()
    iou_K[scale_K == 0] = torch.nan  # silent on every image of the selection half: no threshold means anything
    return pd.DataFrame({"feature": features, "iou": iou_K.numpy(), "iou_threshold": threshold_K.numpy()})


def _square(mask_HW: np.ndarray) -> np.ndarray:
    """The central square, which is what the image preprocessing of CLIP and LLaVA keeps."""
    side = min(mask_HW.shape)
    top, left = (mask_HW.shape[0] - side) // 2, (mask_HW.shape[1] - side) // 2
    return mask_HW[top:top + side, left:left + side]
