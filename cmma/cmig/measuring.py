"""From a model and its dictionary to effects: which pairs are run on which samples, in chunks that can be stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout, collate_queries
from cmma.cmig.ablation import FeatureAblation
from cmma.cmig.between import Later, later_activations
from cmma.cmig.effects import Effects, concatenate, pairwise_effects
from cmma.cmig.screening import cross_differences
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder


class Cost(NamedTuple):
    """Forward rows computed, those that one row per set and sample would have taken, and whether passes resumed."""

    rows_run: int
    rows_asked: int
    resumes: bool


@dataclass(frozen=True)
class Interactions:
    """Effects of a layer's features on a readout, one chunk of samples at a time.

    Attributes:
        features: in ascending order; columns and rows of pairs follow it.
        readout, tokens, rows_at_once: see `FeatureAblation`.
    """

    model: MultimodalModel
    sae: SparseAutoencoder
    layer: int
    features: tuple[int, ...]
    readout: Readout
    tokens: str = "all"
    rows_at_once: int = 256

    def activity(self, queries: Sequence[Query]) -> NDArray[np.bool_]:
        """Whether ablating each feature can change each sample, [samples, K]."""
        return self._ablation(queries).active_BK

    def screen(self, queries: Sequence[Query]) -> dict[str, Tensor]:
        """Σ over samples of the |linearised excess| of every pair: float64[K, K]."""
        return {"screen_KK": torch.from_numpy(np.abs(cross_differences(self._ablation(queries))).sum(axis=0))}

    def effects(self, queries: Sequence[Query], pairs: pd.DataFrame | None = None) -> dict[str, Tensor]:
        """Exact effects: clean_N, single_KN, pair_PN (float64), and `cost` (int64: see `Cost`).

        Args:
            pairs: of `choose_pairs`; None measures all.
        """
        ablation = self._ablation(queries)
        found = pairwise_effects(ablation, self.features, self._numbered(pairs))
        cost = torch.tensor([ablation.rows_run, ablation.rows_asked, int(ablation.resumes)])
        return {
            "clean_N": torch.from_numpy(found.clean_N), "single_KN": torch.from_numpy(found.single_KN),
            "pair_PN": torch.from_numpy(found.pair_PN), "cost": cost,
        }  # fmt: skip

    def later(self, queries: Sequence[Query], later: Later) -> dict[str, Tensor]:
        """What single ablations do to a later layer: clean_NJ, under_NKJ (`later_activations`)."""
        clean_NJ, under_NKJ = later_activations(self._ablation(queries), later)
        return {"clean_NJ": clean_NJ, "under_NKJ": under_NKJ}

    def joined(self, chunks: Sequence[dict[str, Tensor]], pairs: pd.DataFrame | None = None) -> tuple[Effects, Cost]:
        """The chunks of `effects` as one, in their order."""
        features_K = np.asarray(self.features, dtype=np.int64)
        positions_P2: NDArray[np.int64] = (
            np.stack(np.triu_indices(len(features_K), k=1), axis=1) if pairs is None else pairs[["i", "j"]].to_numpy()
        )
        weight_P = None if pairs is None else pairs["weight"].to_numpy()
        parts = [
            Effects(features_K, positions_P2, chunk["clean_N"].numpy(), chunk["single_KN"].numpy(),
                    chunk["pair_PN"].numpy(), weight_P)
            for chunk in chunks
        ]
        rows_run, rows_asked, resumed = torch.stack([chunk["cost"] for chunk in chunks]).sum(0).tolist()
        return concatenate(parts), Cost(rows_run, rows_asked, resumed == len(chunks))

    def _numbered(self, pairs: pd.DataFrame | None) -> list[tuple[int, int]] | None:
        if pairs is None:
            return None
        return [(self.features[i], self.features[j]) for i, j in pairs[["i", "j"]].itertuples(index=False)]

    def _ablation(self, queries: Sequence[Query]) -> FeatureAblation:
        return FeatureAblation(
            self.model, self.sae, self.layer, collate_queries(self.model, queries), queries, self.features,
            self.readout, self.tokens, self.rows_at_once,
        )  # fmt: skip
