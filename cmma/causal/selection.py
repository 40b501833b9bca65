"""Choose features for an intervention: attribution of all, exact ablation of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from cmma.causal.attribution import attribute
from cmma.causal.config import SelectionConfig
from cmma.causal.queries import Query
from cmma.causal.readout import Readout, batches
from cmma.console import progress
from cmma.hooks.resume import EditedPasses
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.statistics.bootstrap import RESAMPLES, bootstrap_columns
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p


@dataclass(frozen=True)
class Selection:
    """Features in the order in which they matter, on the selection samples.

    Attributes:
        table: one row per verified feature, largest exact effect first: feature, density, attribution (estimated effect
            of ablation), effect (measured) with effect_se, effect_low, effect_high, p, q.
        density_K: share of the edited tokens on which each latent is active.
        attribution_K: estimated effect of every latent.
        rank_correlation: Spearman's ρ of estimate and measurement over the verified features.
        queries: what the selection was made on; the effect must be measured on others.
    """

    table: pd.DataFrame
    density_K: Tensor
    attribution_K: Tensor
    rank_correlation: float
    queries: tuple[Query, ...]

    def top(self, n: int) -> tuple[int, ...]:
        """The first `n` features."""
        return tuple(self.table["feature"].head(n).tolist())


def select_features(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    queries: Sequence[Query],
    readout: Readout,
    config: SelectionConfig,
    *,
    tokens: str = "all",
    batch_size: int = 8,
    seed: int = 0,
) -> Selection:
    """Attribute the readout to all features in one backward pass, then really ablate the `config.verify` largest.

    The effect of a feature is the change of the readout when it is ablated: negative where the feature speaks for the
    right answer. Features are ranked by the size of their mean effect over images.
    """
    found = attribute(model, sae, layer, queries, readout, tokens=tokens, steps=config.steps, batch_size=batch_size)
    live = torch.nonzero(found.density_K > 0).flatten()
    order = found.effect_K[live].abs().argsort(descending=True, stable=True)
    candidates = live[order[: config.verify]].tolist()

    effect_NF = ablation_effects(model, sae, layer, queries, readout, candidates, tokens=tokens, batch_size=batch_size)
    keys = np.asarray([query.key for query in queries], dtype=object)
    by_image_IF = pd.DataFrame(effect_NF).groupby(keys, sort=False).mean().to_numpy()
    interval = bootstrap_columns(by_image_IF, RESAMPLES, seed)
    p_F = sign_flip_p(by_image_IF, 1000, seed) if candidates else np.empty(0)
    table = pd.DataFrame({
        "feature": np.asarray(candidates, dtype=np.int64),
        "density": found.density_K[candidates].numpy(), "attribution": found.effect_K[candidates].numpy(),
        "effect": interval.value, "effect_se": interval.standard_error,
        "effect_low": interval.low, "effect_high": interval.high, "p": p_F, "q": benjamini_hochberg(p_F),
    })  # fmt: skip
    table = table.sort_values("effect", key=np.abs, ascending=False, kind="stable", ignore_index=True)
    agreement = spearmanr(table["attribution"], table["effect"]).statistic if len(table) > 2 else float("nan")
    return Selection(table, found.density_K, found.effect_K, float(agreement), tuple(queries))


def ablation_effects(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    queries: Sequence[Query],
    readout: Readout,
    features: Sequence[int],
    *,
    tokens: str = "all",
    batch_size: int = 8,
) -> np.ndarray:
    """Change of the readout when each feature alone is ablated, one pass per feature: float64 [queries, features]."""
    effect_NF = np.empty((len(queries), len(features)))
    edits = [sae.edit(ablate=[feature], tokens=tokens) for feature in features]
    start = 0
    with progress("Ablating features one by one", total=len(queries)) as bar:
        for batch, some in batches(model, queries, batch_size):
            rows = slice(start, start + len(some))
            passes = EditedPasses(model, layer, batch, partial(readout, queries=some))
            for column, edit in enumerate(edits):
                effect_NF[rows, column] = (passes(edit) - passes.clean_B).double().cpu().numpy()
            start = rows.stop
            bar.advance(len(some))
    return effect_NF
