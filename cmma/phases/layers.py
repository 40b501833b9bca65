"""What one dictionary says about its layer: classes, and how much of what is active is cross-modal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cmma.features.specialisation import ActivationSums, class_shares, selectivities, specialise
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.records import RecordBatch


@dataclass(frozen=True)
class LayerReading:
    """One layer of one model, through one dictionary.

    Attributes:
        shares: percent of the live features in each class; `dead` in percent of all.
        activity: `cross_modal_activity` over all samples.
        activity_R: the same in resamples of the samples; readings of one data set and seed share their resamples.
        n_samples: samples behind it.
    """

    shares: dict[str, float]
    activity: float
    activity_R: NDArray[np.float64]
    n_samples: int


def read_layer(
    sae: SparseAutoencoder, batches: Iterable[RecordBatch], tau: float, weights: str, n_resamples: int, seed: int
) -> LayerReading:
    """Classify a dictionary's features on held-out records.

    Args:
        batches: records with the numbers of their samples, each sample in one or more batches.
        tau, weights: of Eq. 5, see `specialise`.
    """
    device, parts = next(sae.parameters()).device, []
    for batch in batches:
        with torch.no_grad():
            latents_BK = sae.encode(batch.acts_BD.to(device), batch.modality_B.to(device)).cpu()
        parts.append((latents_BK, batch.modality_B, batch.sample_B))
    numbers = torch.cat([sample_B for *_, sample_B in parts]).unique()
    sums = ActivationSums(len(numbers), sae.n_latents)
    for latents_BK, modality_B, sample_B in parts:
        sums.add(latents_BK, modality_B, torch.searchsorted(numbers, sample_B))

    classes = specialise(sums, tau, weights, min(n_resamples, 1000), seed=seed)["class"]
    counts_RN = np.random.default_rng(seed).multinomial(
        len(numbers), np.full(len(numbers), 1 / len(numbers)), size=n_resamples)
    sums_NMK, tokens_NM = sums.sums_NMK.numpy().astype(np.float64), sums.tokens_NM.numpy().astype(np.float64)
    flat_NX = sums_NMK.reshape(len(numbers), -1)
    activity_R = np.array([
        cross_modal_activity((count_N @ flat_NX).reshape(sums_NMK.shape[1:]), count_N @ tokens_NM, weights)
        for count_N in counts_RN.astype(np.float64)
    ])
    whole = cross_modal_activity(sums_NMK.sum(axis=0), tokens_NM.sum(axis=0), weights)
    return LayerReading(class_shares(classes), whole, activity_R, len(numbers))


def cross_modal_activity(
    sums_MK: NDArray[np.float64], tokens_M: NDArray[np.float64], weights: str = "balanced"
) -> float:
    """Σ_k ā_k S^v_k S^t_k / Σ_k ā_k: the product of selectivities, averaged over what is active.

    ā_k is the mean of the feature's mean activations on visual and on textual tokens. 0 where every feature fires for
    one modality alone, 1 where all fire equally for both. It needs no threshold, unlike the share of cross-modal
    features.

    Args:
        sums_MK: total activation per modality. tokens_M: number of tokens.
    """
    active_K = (sums_MK / tokens_M[:, None]).mean(axis=0)
    product_K = np.nan_to_num(selectivities(sums_MK, tokens_M, weights).product)
    return float((active_K * product_K).sum() / active_K.sum()) if active_K.sum() > 0 else float("nan")
