"""The strength of a steering, chosen on the calibration images by one rule for all.

Of the strengths at which neither recall nor question accuracy falls by more than allowed, on either split, the one with
the lowest rate of hallucinated objects. A steering that none satisfies is left off (strength 0). Which features are
changed together is chosen by what the model then says, not by their single effects: these do not add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmma.mitigation.comparison import Columns, interval, value
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.examination import Examination, Sheet, examine
from cmma.mitigation.steering import Steering, feature_steering
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder

_SHOWN = ("object", "recall", "described", "accuracy")
_RESAMPLES = 1000
"""Behind the intervals of the dose–response curve: a curve is for looking."""


@dataclass(frozen=True)
class Choice:
    """A steering with its strength, and everything that was tried.

    Attributes:
        strength: 0 where nothing that was tried satisfies the limits.
        rate: of hallucinated objects on the calibration images at that strength.
        tried: one row per strength: `steering, n_features, strength, allowed`, and for each split `SPLIT_object`,
            `SPLIT_recall`, `SPLIT_described`, `SPLIT_accuracy` with `_low` and `_high`.
    """

    steering: Steering
    strength: float
    rate: float
    tried: tuple[dict[str, Any], ...]


class Calibration:
    """The calibration images of both splits, with what the unsteered model says about them.

    Args:
        exams: where it hallucinates, and where nothing may get worse either.
        clean: the unsteered model's sheets of the two.
    """

    def __init__(
        self, model: MultimodalModel, exams: Sequence[Examination], clean: Sequence[Sheet], config: MitigationConfig
    ) -> None:
        self._model, self._exams, self._clean, self._config = model, exams, clean, config
        self._done: dict[tuple[object, ...], dict[str, Any]] = {}
        self._screened: dict[object, float] = {}

    @property
    def clean_rate(self) -> float:
        """Rate of hallucinated objects without steering."""
        return value(self._clean[0].columns, "object")

    def choose(self, steering: Steering) -> Choice:
        """Try every strength."""
        return self._best(steering, [self.attempt(steering, strength) for strength in steering.strengths])

    def choose_features(
        self, sae: SparseAutoencoder, layer: int, pool: Sequence[int], how: str
    ) -> Choice:
        """Forward selection from a pool while ablating; of these as many as the limits allow; then the strength."""
        name = f"features by {how}"
        features = self.forward(sae, layer, pool)
        ablated = []
        for n in range(len(features), 0, -1):
            steering = feature_steering(self._model, sae, layer, features[:n], self._config, name)
            ablated.append(self.attempt(steering, 1.0))
            if ablated[-1]["allowed"] or n == 1:
                found = self.choose(steering)
                return replace(found, tried=(*ablated, *found.tried))
        return Choice(Steering(name), 0.0, self.clean_rate, ())

    def forward(self, sae: SparseAutoencoder, layer: int, pool: Sequence[int]) -> tuple[int, ...]:
        """Features in the order in which each, ablated with those before it, leaves the lowest rate.

        Judged by captions where the model hallucinates. One that costs more recall than allowed is passed over; the
        `config.beam` best of a round compete in the next, and a round without gain is the last.
        """
        chosen: tuple[int, ...] = ()
        rate, free = self.clean_rate, list(pool)
        while free and len(chosen) < self._config.max_features:
            rates = [
                self._screen(feature_steering(self._model, sae, layer, (*chosen, each), self._config, "candidates"))
                for each in free
            ]  # fmt: skip
            ranked = sorted(zip(rates, free, strict=True), key=lambda found: found[0])
            if not ranked[0][0] < rate:
                break
            rate, chosen = ranked[0][0], (*chosen, ranked[0][1])
            free = [each for _, each in ranked[1 : self._config.beam]]
        return chosen

    def _screen(self, steering: Steering) -> float:
        """Rate of hallucinated objects under ablation; infinite where recall falls too far."""
        if steering.identity not in self._screened:
            exam = replace(self._exams[0], questions=[])
            columns = examine(self._model, exam, steering, 1.0, self._config).columns
            rate = value(columns, "object")
            self._screened[steering.identity] = rate if self._keeps(self._clean[0].columns, columns) else math.inf
        return self._screened[steering.identity]

    def _keeps(self, before: Columns, after: Columns) -> bool:
        """Neither recall nor accuracy falls by more than allowed; what nobody asked (NaN) forbids nothing."""
        limits = {"recall": self._config.max_recall_loss, "described": self._config.max_recall_loss,
                  "accuracy": self._config.max_accuracy_loss}
        return not any(value(before, name) - value(after, name) > limit + 1e-12 for name, limit in limits.items())

    def attempt(self, steering: Steering, strength: float) -> dict[str, Any]:
        """One row of `Choice.tried`; what was tried before is not run again."""
        done = steering.identity, strength
        if done not in self._done:
            self._done[done] = self._measure(steering, strength)
        return self._done[done] | {"steering": steering.name}

    @property
    def _rate(self) -> str:
        return f"{self._exams[0].name}_object"

    def _best(self, steering: Steering, tried: Sequence[dict[str, Any]]) -> Choice:
        allowed = [row for row in tried if row["allowed"] and row[self._rate] <= self.clean_rate]
        if not allowed:
            return Choice(steering, 0.0, self.clean_rate, tuple(tried))
        best = min(allowed, key=lambda row: row[self._rate])
        return Choice(steering, best["strength"], best[self._rate], tuple(tried))

    def _measure(self, steering: Steering, strength: float) -> dict[str, Any]:
        config = self._config
        row: dict[str, Any] = {
            "steering": steering.name, "n_features": len(steering.features), "strength": strength, "allowed": True}
        for exam, clean in zip(self._exams, self._clean, strict=True):
            sheet = examine(self._model, exam, steering, strength, config)
            for metric in _SHOWN:
                found = interval(sheet.columns, metric, min(config.n_bootstrap, _RESAMPLES), config.seed)
                row |= {f"{exam.name}_{metric}": found.value, f"{exam.name}_{metric}_low": found.low,
                        f"{exam.name}_{metric}_high": found.high}
            row["allowed"] &= self._keeps(clean.columns, sheet.columns)
        return row
