"""Which features enter the graph, and on which samples; recorded, and never chosen on the samples that are measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch import Tensor

from cmma.causal.attribution import query_effects
from cmma.causal.queries import Query
from cmma.causal.rivals import prepare_readout
from cmma.errors import DataError
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder


def stratified(strata: Sequence[Hashable], n: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices of `n` items, as equally over the strata as their sizes allow, in ascending order.

    Within a stratum the choice is random; places that a small stratum cannot fill go to the others.
    """
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index in rng.permutation(len(strata)).tolist():
        members[strata[index]].append(index)
    turns = [(turn, str(stratum), index) for stratum, own in members.items() for turn, index in enumerate(own)]
    return np.sort([index for *_, index in sorted(turns)[:n]]).astype(np.int64)


def feature_scores(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    queries: Sequence[Query],
    readout: str = "auto",
    tokens: str = "all",
    samples_at_once: int = 16,
) -> pd.DataFrame:
    """Density and attribution (`cmma.causal.attribution.query_effects`) of every latent on the selection samples.

    Returns:
        Columns `feature, density` (share of samples with any activity) and `attribution` (mean |effect|).
    """
    score, queries = prepare_readout(model, queries, readout)
    density_K, attribution_K = (torch.zeros(sae.n_latents, dtype=torch.float64) for _ in range(2))
    for found in query_effects(model, sae, layer, queries, score, tokens=tokens, batch_size=samples_at_once):
        density_K += (found.tokens_BK > 0).sum(dim=0).double().cpu()
        attribution_K += found.effect_BK.abs().sum(dim=0).double().cpu()
    n = len(queries)
    return pd.DataFrame({
        "feature": np.arange(sae.n_latents), "density": (density_K / n).numpy(),
        "attribution": (attribution_K / n).numpy(),
    })  # fmt: skip


def near_duplicates(directions_KD: Tensor, features: Sequence[int], cosine: float) -> dict[int, int]:
    """Feature → its group: complete-linkage clusters in which all directions have at least this cosine.

    A dictionary splits strong directions into several features that do the same; as pairs they interact by
    construction, and each takes a place in the graph.

    Args:
        directions_KD: of these features. Memory grows with K².
    """
    units_KD = torch.nn.functional.normalize(directions_KD.double().cpu(), dim=1)
    near_KK = (units_KD @ units_KD.T >= cosine).numpy()
    first_K = np.arange(len(near_KK))
    _, parts_K = connected_components(csr_matrix(near_KK), directed=False)
    for part in np.flatnonzero(np.bincount(parts_K) > 1):
        members = np.flatnonzero(parts_K == part)
        distance = 1 - (units_KD[members] @ units_KD[members].T).numpy().clip(-1, 1)
        tree = linkage(squareform(distance, checks=False), "complete")
        clusters = fcluster(tree, 1 - cosine, "distance")
        first_K[members] = [members[clusters == cluster].min() for cluster in clusters]
    return {feature: features[first] for feature, first in zip(features, first_K.tolist(), strict=True)}


def select_features(
    scores: pd.DataFrame,
    n: int,
    ranking: str = "attribution",
    min_density: float = 0.05,
    quotas: Mapping[str, float] | None = None,
    groups: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """The `n` features of the graph, best first.

    Args:
        scores: columns `feature, class` and those of `feature_scores`.
        ranking: column by which features are ranked, in descending order.
        min_density: features active in fewer of the samples do not enter: they would hardly be measured.
        quotas: share of the places per class; what a class cannot fill goes to the best of the rest.
        groups: feature → its group (`near_duplicates`), of which only the best ranked can enter; others stand alone.

    Returns:
        The chosen rows, with `place` ("quota" or "rank") saying how each came in and `duplicates`, the number of other
        live features of its group.

    Raises:
        DataError: fewer than two features are active enough.
    """
    live = scores[(scores["density"] >= min_density) & (scores["density"] > 0)]
    live = live.sort_values([ranking, "feature"], ascending=[False, True], kind="stable")
    if len(live) < 2:
        raise DataError(
            f"only {len(live)} features are active in {min_density:.0%} of the samples; "
            "lower cmig.min_density, or train the dictionary longer"
        )
    group = live["feature"].map(lambda feature: (groups or {}).get(feature, feature))
    live = live.assign(duplicates=group.groupby(group).transform("size") - 1).loc[~group.duplicated()]
    by_quota: list[int] = []
    for name, share in (quotas or {}).items():
        by_quota += live.index[live["class"] == name][: round(share * n)].tolist()
    by_quota = by_quota[:n]
    rest = live.index.difference(by_quota, sort=False)[: n - len(by_quota)]
    chosen = live.loc[[*by_quota, *rest]].assign(place=["quota"] * len(by_quota) + ["rank"] * len(rest))
    return chosen.sort_values([ranking, "feature"], ascending=[False, True]).reset_index(drop=True)
