"""Estimate every pair's interaction without running it, to run only the pairs that promise most.

The excess interaction is a difference of differences: [E(i,j) − E(i)] − [E(j) − E(∅)]. Ablating i alone is exact and
costs one row; what j adds to it is taken to first order from the gradient of the same row. So all pairs of k features
cost k forward and backward rows per sample, where measuring them costs k²/2 forward ones. Both orders of a pair are
averaged: their second-order errors differ.

A screen is wrong where the readout is far from linear in the second feature (saturated attention, a cancellation that
ablating both breaks). How often, is measured: beside the first pairs a random sample of the others is run too, and what
is found there estimates what was missed (`estimated_recall`).

The screen looks at the samples that are measured, since what it approximates is the result on those. This does not
make the tests pass too often: they flip signs (`cmma.cmig.inference`), and the screen's score, a mean of absolute
values, is the same under every flip. Given the score, each test is as exact as without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cmma.cmig.ablation import FeatureAblation
from cmma.console import progress
from cmma.statistics.agreement import recall_by_sample
from cmma.statistics.bootstrap import Interval


def cross_differences(ablation: FeatureAblation) -> NDArray[np.float64]:
    """Linearised excess interaction of every pair on every sample of `ablation`.

    Returns:
        [samples, K, K], symmetric; exact in one feature of the pair and linear in the other. The diagonal is 0.
    """
    n, k = ablation.active_BK.shape
    estimate_BKK = np.zeros((n, k, k))
    clean_BK = _slopes(ablation, torch.arange(n), torch.zeros(n, k))
    sample_R, feature_R = map(torch.from_numpy, np.nonzero(ablation.active_BK))
    with progress("Screening pairs", total=len(sample_R)) as bar:
        for at in torch.arange(len(sample_R)).split(ablation.rows_at_once):
            off_RK = torch.nn.functional.one_hot(feature_R[at], k).float()
            slope_RK = _slopes(ablation, sample_R[at], off_RK)
            estimate_BKK[sample_R[at], feature_R[at]] = slope_RK - clean_BK[sample_R[at]]
            bar.advance(len(at))
    estimate_BKK[:, np.arange(k), np.arange(k)] = 0
    return (estimate_BKK + estimate_BKK.transpose(0, 2, 1)) / 2


def _slopes(ablation: FeatureAblation, row_R: torch.Tensor, off_RK: torch.Tensor) -> NDArray[np.float64]:
    device = ablation.model.device
    found = [
        ablation.slopes(row_R[at].to(device), off_RK[at].to(device)).double().cpu().numpy()
        for at in torch.arange(len(row_R)).split(ablation.rows_at_once)
    ]
    return np.concatenate(found)


def choose_pairs(score_KK: NDArray[np.float64], n_top: int, n_random: int, seed: int = 0) -> pd.DataFrame:
    """The pairs to measure: the `n_top` of highest score, and `n_random` drawn from the rest.

    Args:
        score_KK: symmetric; the mean |linearised excess| over samples.

    Returns:
        One row per pair in the order of positions: `i, j` (positions, i < j), `screen` (its score), `place` ("top" or
        "random"), `weight` (for how many pairs it stands).
    """
    i_P, j_P = np.triu_indices(len(score_KK), k=1)
    screen_P = score_KK[i_P, j_P]
    order_P = np.lexsort((j_P, i_P, -screen_P))  # ties by position
    top, rest = order_P[:n_top], order_P[n_top:]
    drawn = np.random.default_rng(seed).choice(rest, min(n_random, len(rest)), replace=False)
    table = pd.DataFrame({
        "i": i_P, "j": j_P, "screen": screen_P, "place": "", "weight": 1.0,
    }).loc[np.concatenate([top, drawn])]  # fmt: skip
    table["place"] = ["top"] * len(top) + ["random"] * len(drawn)
    table.loc[table["place"] == "random", "weight"] = len(rest) / max(1, len(drawn))
    return table.sort_values(["i", "j"]).reset_index(drop=True)


@dataclass(frozen=True)
class Recall:
    """Which share of the pairs that are something the screen put first.

    Attributes:
        recall: found / (found + estimate of those missed), with the interval that the random sample allows.
        found: such pairs among the first. missed: such pairs among the random ones; each stands for several.
    """

    recall: Interval
    found: int
    missed: int

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {"recall": self.recall.as_dict(), "found": self.found, "missed": self.missed}


def estimated_recall(pairs: pd.DataFrame, is_P: Sequence[bool] | NDArray[np.bool_]) -> Recall:
    """Recall of the screen for pairs with some property, such as a significant interaction.

    Args:
        pairs: of `choose_pairs`. is_P: which of these have the property.
    """
    is_P, drawn_P = np.asarray(is_P, dtype=bool), (pairs["place"] == "random").to_numpy()
    found, missed, n_drawn = int(is_P[~drawn_P].sum()), int(is_P[drawn_P].sum()), int(drawn_P.sum())
    n_rest = round(float(pairs["weight"].to_numpy()[drawn_P].sum()))
    return Recall(recall_by_sample(found, missed, n_drawn, n_rest), found, missed)
