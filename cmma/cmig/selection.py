"""Which features enter the graph, and on which samples; recorded, and never chosen on the samples that are measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import batches
from cmma.causal.rivals import prepare_readout
from cmma.cmig.streams import Stream, read_streams
from cmma.console import track
from cmma.errors import DataError
from cmma.hooks.edit import Edit, TokenEdit
from cmma.hooks.resume import can_resume, inputs_above, resumed
from cmma.hooks.trace import Trace
from cmma.models.base import Batch, MultimodalModel
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
    """Density and attribution of every latent on the selection samples.

    Attribution is the linearised effect of ablating the feature, −Σ_tokens a_i f_i · ∂E/∂h, in one backward pass
    (sparse feature circuits); documented to miss features behind saturated attention.

    Returns:
        Columns `feature, density` (share of samples with any activity) and `attribution` (mean |effect|).
    """
    density_K = np.zeros(sae.n_latents)
    attribution_K = np.zeros(sae.n_latents)
    score, queries = prepare_readout(model, queries, readout)
    sites = [place.site for place in model.record_sites(layer)]
    chunks = batches(model, queries, samples_at_once)
    for batch, some in track(chunks, "Ranking features", total=-(-len(queries) // samples_at_once)):
        with torch.no_grad(), Trace(model, sites, stop=True) as acts:
            model(**batch)
        streams = read_streams(model, sae, layer, acts, batch, range(sae.n_latents), tokens)
        gradients = _gradients(model, layer, batch, streams, partial(score, queries=some))
        effect_BK = torch.zeros(len(some), sae.n_latents, device=model.device)
        active_BK = torch.zeros_like(effect_BK, dtype=torch.bool)
        for stream, gradient_BSD in zip(streams, gradients, strict=True):
            active_BK |= stream.active_BK
            for modality, direction_KD in enumerate(stream.directions_MKD):
                here_BSD = gradient_BSD.float() * (stream.modality_BS == modality)[..., None]
                effect_BK -= torch.einsum("bsk,bsk->bk", stream.latents_BSK, here_BSD @ direction_KD.T)
        density_K += active_BK.sum(dim=0).cpu().numpy()
        attribution_K += effect_BK.abs().sum(dim=0).double().cpu().numpy()
    n = len(queries)
    return pd.DataFrame(
        {"feature": np.arange(sae.n_latents), "density": density_K / n, "attribution": attribution_K / n}
    )


def _gradients(
    model: MultimodalModel, layer: int, batch: Batch, streams: Sequence[Stream], score: Callable[[Batch], Tensor]
) -> tuple[Tensor, ...]:
    """The summed score's gradient by the activations of each stream, [B, S, D] each.

    Where passes can start at the layer, they do. Else the whole network runs with a zero added at each site, so that
    what one stream does to another stays in the derivative.
    """
    leaves = [torch.zeros_like(stream.acts_BSD).requires_grad_() for stream in streams]
    with torch.enable_grad(), ExitStack() as stack:
        if can_resume(model, layer):
            moved = {stream.site: stream.acts_BSD + leaf for stream, leaf in zip(streams, leaves, strict=True)}
            stack.enter_context(resumed(model, moved))
            total = score(inputs_above(model, layer, batch)).sum()
        else:
            for stream, leaf in zip(streams, leaves, strict=True):
                stack.enter_context(Edit(model, stream.site, _plus(leaf)))
            total = score(batch).sum()
    return torch.autograd.grad(total, leaves)


def _plus(delta_BSD: Tensor) -> TokenEdit:
    return TokenEdit(lambda acts_ND, _, where: acts_ND + delta_BSD[where.batch_index, where.position], tokens="every")


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
