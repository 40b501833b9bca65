"""Do units stand for concepts? Detection by image, and overlap of a unit's map with the concept's exact masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cmma.baselines.ground import Images
from cmma.baselines.measures import Measure, mean_auroc, mean_ratio
from cmma.baselines.methods.base import Reading
from cmma.control.trials import VALUES
from cmma.features.concepts import auroc
from cmma.features.masks import cell_coverage, concept_mask
from cmma.models.base import MultimodalModel

_QUANTILES = np.linspace(0.5, 0.995, 100)
"""Of a unit's map on the selection images: where its thresholds are tried, whatever its scale."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """Where the concepts are. pixels_IPC: pixels of each concept in each patch; area_P: pixels of a patch."""

    pixels_IPC: np.ndarray
    area_P: np.ndarray


def coverage(model: MultimodalModel, images: Images, layer: int) -> Coverage:
    """Exact object masks on the grid of patches; the images are square scenes with masks."""
    grid = model.image_grid(model.collate(images.samples[:1]), layer)
    pixels, masks = [], [[concept_mask(sample, name) for name in images.labels.names] for sample in images.samples]
    for of_image in masks:
        pixels.append(np.stack([cell_coverage(mask_HW, *grid).ravel() for mask_HW in of_image if mask_HW is not None],
                               axis=1))
    return Coverage(np.stack(pixels), cell_coverage(np.ones_like(masks[0][0], dtype=bool), *grid).ravel())


def measure(
    selected: Reading, measured: Reading, selection: Images, measurement: Images, where: tuple[Coverage, Coverage]
) -> tuple[dict[str, Measure], pd.DataFrame]:
    """Choose on the selection images, measure on the others.

    A concept's unit is the one of highest AUROC on the selection images (a method that answers by concept has no
    choice); the threshold of its map is the one of highest pixel IoU there, pooled over images.

    Args:
        where: masks of the selection and of the measured images.

    Returns:
        Measures by metric: "detection AUROC" and "mask IoU" over all concepts, and the AUROC of each kind of concept;
        and one row per concept: `concept, unit, auroc_selection, iou_selection, auroc, iou`.
    """
    names = selection.labels.names
    chosen_C = np.arange(len(names))
    if not selected.by_concept:
        chosen_C = np.nan_to_num(auroc(selected.scores_IU, selection.labels.truth_NC), nan=0.0).argmax(0)
    threshold_C, iou_selection_C = thresholds(selected.maps_IPU[:, :, chosen_C], where[0])
    both_IC, either_IC = overlap(measured.maps_IPU[:, :, chosen_C], threshold_C, where[1])
    scores_IC, truth_IC = measured.scores_IU[:, chosen_C].astype(float), measurement.labels.truth_NC
    kind_C = np.array([concept_kind(name) for name in names])
    found = {"detection AUROC": mean_auroc(scores_IC, truth_IC), "mask IoU": mean_ratio(both_IC, either_IC)}
    found |= {f"detection AUROC: {kind}": mean_auroc(scores_IC[:, kind_C == kind], truth_IC[:, kind_C == kind])
              for kind in dict.fromkeys(kind_C.tolist())}
    with np.errstate(divide="ignore", invalid="ignore"):
        iou_C = both_IC.sum(0) / either_IC.sum(0)
    selected_IC = selected.scores_IU[:, chosen_C]
    return found, pd.DataFrame({
        "concept": names, "unit": chosen_C,
        "auroc_selection": np.diag(auroc(selected_IC, selection.labels.truth_NC)), "iou_selection": iou_selection_C,
        "auroc": np.diag(auroc(scores_IC, truth_IC)), "iou": iou_C,
    })  # fmt: skip


def thresholds(maps_IPC: np.ndarray, where: Coverage) -> tuple[np.ndarray, np.ndarray]:
    """The threshold of highest IoU for each concept [C], and that IoU."""
    best_C, iou_C = np.zeros(maps_IPC.shape[2]), np.full(maps_IPC.shape[2], -1.0)
    for threshold_C in np.quantile(maps_IPC, _QUANTILES, axis=(0, 1)):
        both_IC, either_IC = overlap(maps_IPC, threshold_C, where)
        with np.errstate(divide="ignore", invalid="ignore"):
            found_C = np.nan_to_num(both_IC.sum(0) / either_IC.sum(0))
        best_C, iou_C = np.where(found_C > iou_C, threshold_C, best_C), np.maximum(found_C, iou_C)
    return best_C, iou_C


def overlap(maps_IPC: np.ndarray, threshold_C: np.ndarray, where: Coverage) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both and in either of the thresholded map and the mask, [I, C] each."""
    on_IPC = maps_IPC > threshold_C
    both_IC = (on_IPC * where.pixels_IPC).sum(1)
    return both_IC, np.einsum("ipc,p->ic", on_IPC, where.area_P) + where.pixels_IPC.sum(1) - both_IC


def concept_kind(name: str) -> str:
    """Which attribute a word is a value of; "object" for a whole one."""
    return next((kind for kind, values in VALUES.items() if name in values), "object")
