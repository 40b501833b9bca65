"""Which samples to show for a feature: the strongest ones, some per quantile of its activation, and silent ones.

All three are the same streaming selection of the n largest keys per feature: the key is the activation itself, or a
random priority among the activating samples, or a random priority among the silent ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

NOTHING = -1  # sample index of an unfilled slot


class StreamingTop:
    """The n samples with the largest keys per feature, over a stream of batches, with a value and a position each.

    Equal to sorting everything at once; ties go to the sample that came first. Keys of −inf are never kept.

    Attributes:
        keys_KT, values_KT, samples_KT, positions_KT: slots in descending order of key; samples are NOTHING where
            fewer than n samples were eligible.
    """

    def __init__(self, n_features: int, n: int) -> None:
        self.keys_KT = torch.full((n_features, n), -torch.inf)
        self.values_KT = torch.zeros(n_features, n)
        self.samples_KT = torch.full((n_features, n), NOTHING)
        self.positions_KT = torch.full((n_features, n), NOTHING)

    def add(self, keys_BK: Tensor, values_BK: Tensor, positions_BK: Tensor, samples_B: Tensor) -> None:
        """Offer one batch of samples. `positions_BK`: where in the sample the value was reached."""
        n = self.keys_KT.shape[1]
        keys = torch.cat([self.keys_KT, keys_BK.T.float()], dim=1)
        order_KT = keys.argsort(dim=1, descending=True, stable=True)[:, :n]
        samples_KB = samples_B.expand(keys_BK.shape[1], -1)
        self.keys_KT = keys.gather(1, order_KT)
        self.values_KT = torch.cat([self.values_KT, values_BK.T.float()], 1).gather(1, order_KT)
        self.positions_KT = torch.cat([self.positions_KT, positions_BK.T], 1).gather(1, order_KT)
        self.samples_KT = torch.cat([self.samples_KT, samples_KB], 1).gather(1, order_KT)
        self.samples_KT[self.keys_KT == -torch.inf] = NOTHING


class ExampleCollector:
    """Collects the strongest, a random draw of activating, and a random draw of silent samples of every feature."""

    def __init__(self, n_features: int, n_top: int = 12, n_active: int = 40, n_silent: int = 6, seed: int = 0) -> None:
        """`n_active`: size of the random draw that stands for the feature's distribution in `bands`."""
        self.top = StreamingTop(n_features, n_top)
        self.active = StreamingTop(n_features, n_active)
        self.silent = StreamingTop(n_features, n_silent)
        self.seed = seed

    def add(self, scores_BK: Tensor, positions_BK: Tensor, samples_B: Tensor) -> None:
        """Offer one batch. `scores_BK`: each feature's largest activation in the sample, reached at `positions_BK`."""
        priority_BK = torch.stack([self._priority(int(sample), scores_BK.shape[1]) for sample in samples_B])
        fires_BK = scores_BK > 0
        self.top.add(scores_BK.masked_fill(~fires_BK, -torch.inf), scores_BK, positions_BK, samples_B)
        self.active.add(priority_BK.masked_fill(~fires_BK, -torch.inf), scores_BK, positions_BK, samples_B)
        self.silent.add(priority_BK.masked_fill(fires_BK, -torch.inf), scores_BK, positions_BK, samples_B)

    def _priority(self, sample: int, n_features: int) -> Tensor:
        """A function of (seed, sample) alone, so that the batch size does not change what is drawn."""
        return torch.from_numpy(np.random.default_rng((self.seed, sample)).random(n_features, dtype=np.float32))

    def table(self, features: Iterable[int], n_bands: int = 4, per_band: int = 3) -> pd.DataFrame:
        """Chosen samples in long form: `feature, band, rank, sample, position, activation`.

        Bands: "top", then "q4" … "q1" (quarters of the activating samples' distribution, strongest first, without those
        that are in "top" already), then "silent".
        """
        rows: list[tuple[int, str, int, int, int, float]] = []
        for feature in features:
            top = _slots(self.top, feature)
            shown = {sample for sample, _, _ in top}
            bands = {"top": top}
            drawn = sorted(_slots(self.active, feature), key=lambda slot: -slot[2])
            for band, part in enumerate(np.array_split(np.arange(len(drawn)), n_bands)):
                fresh = [drawn[i] for i in part if drawn[i][0] not in shown]
                bands[f"q{n_bands - band}"] = _spread(fresh, per_band)
            bands["silent"] = _slots(self.silent, feature)
            rows += [(int(feature), band, rank, *slot) for band, slots in bands.items()
                     for rank, slot in enumerate(slots)]
        return pd.DataFrame(rows, columns=["feature", "band", "rank", "sample", "position", "activation"])


def _slots(top: StreamingTop, feature: int) -> list[tuple[int, int, float]]:
    """Filled slots of one feature: (sample, position, value)."""
    return [
        (int(sample), int(position), float(value))
        for sample, position, value in zip(
            top.samples_KT[feature], top.positions_KT[feature], top.values_KT[feature], strict=True
        )
        if sample != NOTHING
    ]


def _spread(items: list[tuple[int, int, float]], n: int) -> list[tuple[int, int, float]]:
    """At most n items, evenly spaced over the list."""
    if len(items) <= n:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, n).round().astype(int)]
