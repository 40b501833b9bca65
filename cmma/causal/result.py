"""The result of activation patching: scores of every cell, and the statistics that are read off them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cmma.statistics.bootstrap import RESAMPLES, Interval, bootstrap_columns, bootstrap_mean
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p

ALPHA = 0.05


@dataclass(frozen=True)
class TotalEffect:
    """Clean minus corrupt readout over images: mean with 95% BCa interval, and p of a sign-flip test of "none"."""

    interval: Interval
    p: float

    @property
    def corrupts(self) -> bool:
        """Whether the corruption lowers the readout beyond chance, so that there is something to recover."""
        return self.interval.value > 0 and self.p < ALPHA

    def __str__(self) -> str:
        if self.corrupts:
            return f"the corruption lowers the readout by {self.interval}, p = {self.p:.2g}"
        return f"the corruption's total effect {self.interval} cannot be told from none (p = {self.p:.2g})"


def recovery_intervals(
    effect_NR: np.ndarray, span_N: np.ndarray, n_resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recovered share of the total effect per column, with the bounds of its 95% BCa interval over images.

    Mean effect / mean total effect; the interval is that of the linearised ratio (delta method).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        recovery_R = effect_NR.mean(axis=0) / span_N.mean() if len(span_N) else np.full(effect_NR.shape[1], np.nan)
        linear_NR = recovery_R + (effect_NR - recovery_R * span_N[:, None]) / span_N.mean()
    defined = len(span_N) and np.isfinite(linear_NR).all()
    found = bootstrap_columns(linear_NR if defined else linear_NR[:0], n_resamples, seed)
    return recovery_R, found.low, found.high


@dataclass(frozen=True)
class PatchResult:
    """Readout of the corrupt run with one cell restored, for every cell of (row × group).

    A case is one clean run with one corrupt run; noise draws of one image are cases with the same key. Statistics
    average the cases of an image first and then treat images as the independent units.

    Attributes:
        rows: names of the rows: the site, or the centre of a window of sites, restored there.
        groups: names of the position groups.
        keys: image of each case, length C.
        score_CRG: readout with the cell restored; NaN where the case has no position of that group.
        low_C, high_C: readout of the corrupt and of the clean run.
        correct_C: whether the clean run answers right.
        correct_only: whether the statistics use the correct cases only.
        readout: what the scores are.
    """

    rows: tuple[str, ...]
    groups: tuple[str, ...]
    keys: tuple[str, ...]
    score_CRG: np.ndarray
    low_C: np.ndarray
    high_C: np.ndarray
    correct_C: np.ndarray
    correct_only: bool
    readout: str

    @property
    def n_total(self) -> int:
        """Images that were run."""
        return len(set(self.keys))

    @property
    def n_correct(self) -> int:
        """Images that the clean run answers right."""
        return len({key for key, correct in zip(self.keys, self.correct_C, strict=True) if correct})

    @property
    def images(self) -> tuple[str, ...]:
        """Images behind the statistics, length N."""
        return tuple(dict.fromkeys(np.asarray(self.keys, dtype=object)[self._used_C]))

    @property
    def effect_NRG(self) -> np.ndarray:
        """Indirect effect per image: patched minus corrupt readout."""
        return self._by_image(self.score_CRG - self.low_C[:, None, None])

    @property
    def span_N(self) -> np.ndarray:
        """Total effect per image: clean minus corrupt readout."""
        return self._by_image(self.high_C - self.low_C)

    @property
    def recovery_NRG(self) -> np.ndarray:
        """(score - low) / (high - low) per image; unstable where the corruption did little, see `summary`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.effect_NRG / self.span_N[:, None, None]

    def summary(self, n_resamples: int = RESAMPLES, n_permutations: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row per cell, with 95% BCa intervals over images.

        Columns: row, group, n; effect with effect_se, effect_low, effect_high; recovery with recovery_low and
        recovery_high; p (sign-flip test of effect = 0) and q (Benjamini-Hochberg over all cells).

        Recovery is mean effect / mean total effect. A mean of per-image ratios is dominated by the images on which the
        corruption did nothing (`recovery_intervals`).
        """
        effect_NRG, span_N = self.effect_NRG, self.span_N
        tables = []
        for index, group in enumerate(self.groups):
            present_N = np.isfinite(effect_NRG[:, 0, index]) if len(span_N) else np.zeros(0, dtype=bool)
            effect_NR, present_span_N = effect_NRG[present_N, :, index], span_N[present_N]
            effect = bootstrap_columns(effect_NR, n_resamples, seed)
            recovery_R, low_R, high_R = recovery_intervals(effect_NR, present_span_N, n_resamples, seed)
            p_R = sign_flip_p(effect_NR, n_permutations, seed) if present_N.any() else np.full(len(self.rows), np.nan)
            columns = {
                "row": self.rows, "group": group, "n": int(present_N.sum()),
                "effect": effect.value, "effect_se": effect.standard_error,
                "effect_low": effect.low, "effect_high": effect.high,
                "recovery": recovery_R, "recovery_low": low_R, "recovery_high": high_R, "p": p_R,
            }  # fmt: skip
            tables.append(pd.DataFrame(columns))
        table = pd.concat(tables, ignore_index=True)
        return table.assign(q=benjamini_hochberg(table["p"]))

    def to_frame(self) -> pd.DataFrame:
        """Every measured score, long: key, case, correct, row, group, score, low, high."""
        case_V, row_V, group_V = np.nonzero(np.isfinite(self.score_CRG))
        names = {"key": self.keys, "row": self.rows, "group": self.groups}
        column = {name: np.asarray(values, dtype=object) for name, values in names.items()}
        return pd.DataFrame({
            "key": column["key"][case_V], "case": case_V, "correct": self.correct_C[case_V],
            "row": column["row"][row_V], "group": column["group"][group_V],
            "score": self.score_CRG[case_V, row_V, group_V],
            "low": self.low_C[case_V], "high": self.high_C[case_V],
        })  # fmt: skip

    def total_effect(self, n_resamples: int = RESAMPLES, n_permutations: int = 10_000, seed: int = 0) -> TotalEffect:
        """What the corruption does to the readout, over the images behind the statistics."""
        span_N = self.span_N
        p = float(sign_flip_p(span_N, n_permutations, seed)) if len(span_N) else float("nan")
        return TotalEffect(bootstrap_mean(span_N, n_resamples, seed), p)

    def totals(self, seed: int = 0) -> dict[str, float | int | str | bool]:
        """What the whole trace is about: counts, mean clean and corrupt readout over cases, total effect.

        The total effect has its interval, standard error and p over images (see `total_effect`); `corrupts` says
        whether it is beyond chance.
        """
        total = self.total_effect(seed=seed)
        used = self._used_C
        low, high = (float(scores[used].mean()) if used.any() else float("nan") for scores in (self.low_C, self.high_C))
        return {
            "readout": self.readout, "n_total": self.n_total, "n_correct": self.n_correct, "n_used": len(self.images),
            "correct_only": self.correct_only, "clean": high, "corrupt": low, "total_effect": high - low,
            "total_effect_low": total.interval.low, "total_effect_high": total.interval.high,
            "total_effect_se": total.interval.standard_error, "total_effect_p": total.p, "corrupts": total.corrupts,
        }  # fmt: skip

    @property
    def _used_C(self) -> np.ndarray:
        return self.correct_C if self.correct_only else np.ones_like(self.correct_C)

    def _by_image(self, values_C: np.ndarray) -> np.ndarray:
        """Mean over the used cases of each image: [C, ...] → [N, ...]."""
        keys_C = np.asarray(self.keys, dtype=object)
        images = self.images
        out = np.empty((len(images), *values_C.shape[1:]))
        for row, image in enumerate(images):
            out[row] = values_C[self._used_C & (keys_C == image)].mean(axis=0)
        return out
