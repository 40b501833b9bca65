"""Effects of a layer's features on the features of a later layer: Eq. 7's do(a_i = 0), read out as activations.

The readout of feature j of layer m on a sample is its mean activation over the tokens. Ablating feature i at layer l
below m and running on to m gives what i does to every j at once: k rows per sample, however many features are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmma.cmig.ablation import FeatureAblation
from cmma.cmig.streams import read_streams
from cmma.console import progress
from cmma.errors import ConfigError
from cmma.models.base import Batch, MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.statistics.bootstrap import bootstrap_columns
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p


class Later(NamedTuple):
    """A later layer: its dictionary and the features of it that are read."""

    sae: SparseAutoencoder
    layer: int
    features: tuple[int, ...]


def later_activations(ablation: FeatureAblation, later: Later) -> tuple[Tensor, Tensor]:
    """Mean activations of the later features over a sample's tokens, clean and under each single ablation.

    Returns:
        float64 [N, J], and [N, K, J] with the K features of `ablation` ablated one at a time.

    Raises:
        ConfigError: the later layer does not lie above.
    """
    if later.layer <= ablation.layer:
        raise ConfigError(f"layer {later.layer} does not lie above layer {ablation.layer}, whose features are ablated; "
                          "cmig.to_layers names later layers")
    n, k = ablation.active_BK.shape
    clean_NJ = _read(ablation, later, torch.arange(n), torch.zeros(n, k))
    under_NKJ = clean_NJ[:, None].repeat(1, k, 1)
    sample_R, feature_R = map(torch.from_numpy, np.nonzero(ablation.active_BK))
    with progress(f"Reading layer {later.layer}", total=len(sample_R)) as bar:
        for at in torch.arange(len(sample_R)).split(ablation.rows_at_once):
            off_RK = torch.nn.functional.one_hot(feature_R[at], k).float()
            under_NKJ[sample_R[at], feature_R[at]] = _read(ablation, later, sample_R[at], off_RK)
            bar.advance(len(at))
    return clean_NJ, under_NKJ


def _read(ablation: FeatureAblation, later: Later, row_R: Tensor, off_RK: Tensor) -> Tensor:
    device, parts = ablation.model.device, []
    sites = [place.site for place in ablation.model.record_sites(later.layer)]
    for at in torch.arange(len(row_R)).split(ablation.rows_at_once):
        acts, batch = ablation.states(row_R[at].to(device), off_RK[at].to(device), sites)
        parts.append(_mean_activations(ablation.model, later, acts, batch))
    return torch.cat(parts)


def _mean_activations(model: MultimodalModel, later: Later, acts: dict[str, Tensor], batch: Batch) -> Tensor:
    streams = read_streams(model, later.sae, later.layer, acts, batch, later.features)
    total_RJ = torch.stack([stream.latents_BSK.sum(dim=1) for stream in streams]).sum(dim=0)
    tokens_R = torch.stack([(stream.modality_BS >= 0).sum(dim=1) for stream in streams]).sum(dim=0)
    return (total_RJ / tokens_R.clamp_min(1)[:, None]).double().cpu()


def between_table(
    clean_NJ: NDArray[np.float64], under_NKJ: NDArray[np.float64], sources: Sequence[int], later: Later,
    permutations: int = 1000, max_permutations: int = 100_000, resamples: int = 10_000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """One row per edge from a feature to a later one, in standard deviations of the later one over samples.

    Columns:
        source, target, target_layer.
        strength, strength_low, strength_high: mean |a_j − a_j(do(a_i = 0))| with its 95% BCa interval over samples.
        effect: the mean with its sign, positive where the source feeds the target; p: sign-flip test; q: BH.

    Features of the later layer that are the same for all samples have no unit and no row.
    """
    spread_J = clean_NJ.std(axis=0, ddof=1)
    varied_J = np.flatnonzero(spread_J > 0)
    effect_NKJ = (clean_NJ[:, None] - under_NKJ)[..., varied_J] / spread_J[varied_J]
    effect_NE = effect_NKJ.reshape(len(clean_NJ), -1)
    strength = bootstrap_columns(np.abs(effect_NE), resamples, seed)
    p_E = sign_flip_p(effect_NE, permutations, seed, max_permutations)
    targets = np.asarray(later.features)[varied_J]
    return pd.DataFrame({
        "source": np.repeat(np.asarray(sources), len(targets)), "target": np.tile(targets, len(sources)),
        "target_layer": later.layer, "strength": strength.value, "strength_low": strength.low,
        "strength_high": strength.high, "effect": effect_NE.mean(axis=0), "p": p_E, "q": benjamini_hochberg(p_E),
    })  # fmt: skip
