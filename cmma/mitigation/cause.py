"""The planted cause of the shapes world: do the prone features lie on the trigger of the hallucination?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmma.causal.controls import matched_features
from cmma.causal.positions import object_patches
from cmma.data.samples import Sample
from cmma.features.concepts import auroc
from cmma.hooks import TokenEdit, Where, splice
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.statistics.bootstrap import bootstrap_mean
from cmma.statistics.permutation import sign_flip_p
from cmma.testbed.world import TRIGGER


def trigger_table(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], features: Sequence[int],
    density_K: Tensor, n_controls: int = 8, batch_size: int = 64, n_resamples: int = 10_000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """How well each feature's activation on image tokens finds the patches of the trigger, image by image.

    Samples without a trigger, or without a mask, are left out; with none left the table is empty.

    Returns:
        One row per feature: `feature, auroc` (trigger's patches among all patches, mean over images; 0.5 is chance)
        with `auroc_low, auroc_high`; `control` (mean of random features of matched density), `p` (paired over images,
        against the controls); `active_on_trigger, active_elsewhere` (shares of patches); `n` images.
    """
    shown = [sample for sample in samples if sample.mask is not None and _trigger(sample)]
    columns = ["feature", "auroc", "auroc_low", "auroc_high", "control", "p", "active_on_trigger", "active_elsewhere",
               "n"]
    if not shown or not features:
        return pd.DataFrame(columns=columns)
    drawn = matched_features(density_K, list(features), n_controls, seed)
    wanted = list(dict.fromkeys([*features, *(each for draw in drawn for each in draw)]))
    found_IPF = patch_activations(model, sae, layer, shown, wanted, batch_size)
    grid = model.image_grid(model.collate(shown[:1]))
    truth_IP = np.stack([object_patches(sample, _trigger(sample), grid) for sample in shown])
    area_IF = np.stack([
        auroc(found_PF, truth_P[:, None])[:, 0] for found_PF, truth_P in zip(found_IPF, truth_IP, strict=True)
    ])  # fmt: skip
    rows = []
    for index, feature in enumerate(features):
        own_I, active_IP = area_IF[:, index], found_IPF[:, :, index] > 0
        control_I = np.mean([area_IF[:, wanted.index(draw[index])] for draw in drawn], axis=0)
        interval = bootstrap_mean(own_I, n_resamples, seed)
        rows.append((
            feature, interval.value, interval.low, interval.high, float(control_I.mean()),
            float(sign_flip_p(own_I - control_I, n_resamples, seed)), float(active_IP[truth_IP].mean()),
            float(active_IP[~truth_IP].mean()), len(shown),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def patch_activations(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], features: Sequence[int],
    batch_size: int = 64,
) -> np.ndarray:  # fmt: skip
    """Activations of some features at the patches of each image: float32 [images, patches, features]."""
    parts = []
    for start in range(0, len(samples), batch_size):
        batch = model.collate(samples[start : start + batch_size])
        position_BP = model.image_positions(batch).cpu()
        latents_BSF = torch.zeros(len(position_BP), batch["input_ids"].shape[1], len(features))

        def keep(acts_ND: Tensor, modality_N: Tensor, where: Where, into: Tensor = latents_BSF) -> Tensor:
            into[where.batch_index.cpu(), where.position.cpu()] = (
                sae.encode(acts_ND, modality_N)[:, list(features)].float().cpu())
            return acts_ND

        with splice(model, layer, TokenEdit(keep, cast(Any, "visual"), "prefill")):
            model(**batch)
        parts.append(latents_BSF[torch.arange(len(position_BP))[:, None], position_BP])
    return torch.cat(parts).numpy()


def _trigger(sample: Sample) -> list[int]:
    return [i for i, thing in enumerate(sample.objects) if (thing["color"], thing["shape"]) == TRIGGER]
