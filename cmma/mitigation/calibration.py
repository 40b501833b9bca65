"""The strength of a steering, chosen on the calibration images by one rule for all.

Of the strengths at which neither recall nor question accuracy falls by more than allowed, on either split, the one with
the lowest rate of hallucinated objects. A steering that none satisfies is left off (strength 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmma.mitigation.comparison import interval, value
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.examination import Examination, Sheet, examine
from cmma.mitigation.prone import ProneFeatures
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

    @property
    def clean_rate(self) -> float:
        """Rate of hallucinated objects without steering."""
        return value(self._clean[0].columns, "object")

    def choose(self, steering: Steering) -> Choice:
        """Try every strength."""
        return self._best(steering, [self.attempt(steering, strength) for strength in steering.strengths])

    def choose_features(
        self, sae: SparseAutoencoder, layer: int, prone: ProneFeatures, how: str
    ) -> Choice:
        """Choose their number while ablating (s = 1), then the strength."""
        sets = dict.fromkeys(prone.features(how, n) for n in self._config.n_features)
        made = [
            feature_steering(self._model, sae, layer, features, self._config, f"features by {how}")
            for features in sets if features
        ]  # fmt: skip
        if not made:
            return Choice(Steering(f"features by {how}"), 0.0, self.clean_rate, ())
        ablated = [self.attempt(steering, 1.0) for steering in made]
        first = min(range(len(made)), key=lambda i: (not ablated[i]["allowed"], ablated[i][self._rate]))
        found = self.choose(made[first])
        return replace(found, tried=(*ablated, *found.tried))

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
            for metric, limit in (("recall", config.max_recall_loss), ("described", config.max_recall_loss),
                                  ("accuracy", config.max_accuracy_loss)):
                loss = value(clean.columns, metric) - value(sheet.columns, metric)
                row["allowed"] &= not loss > limit + 1e-12  # NaN (nothing asked) forbids nothing
        return row
