"""How large an intervention's effect is: against no intervention, and against its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cmma.figures import Curves, Line
from cmma.statistics.bootstrap import RESAMPLES, bootstrap_mean
from cmma.statistics.correction import holm
from cmma.statistics.effect import cohens_d
from cmma.statistics.permutation import sign_flip_p


@dataclass(frozen=True)
class InterventionResult:
    """The readout of every query, without and with one intervention and under its controls.

    Attributes:
        kind, strength, features, layer: the intervention.
        readout: what the scores are.
        keys: image of each query, length N.
        before_N, after_N: readout without and with the intervention.
        random_features_CN: readout with as many random features of matched density instead, per draw.
        random_directions_CN: readout with a change of equal norm along a random direction, per draw.
        change_norm: mean norm of the change over the edited tokens, in the model's units.
        seed: of the controls.
    """

    kind: str
    strength: float
    features: tuple[int, ...]
    layer: int
    readout: str
    keys: tuple[str, ...]
    before_N: np.ndarray
    after_N: np.ndarray
    random_features_CN: np.ndarray
    random_directions_CN: np.ndarray
    change_norm: float
    seed: int

    def summary(self, n_resamples: int = RESAMPLES, n_permutations: int = 10_000) -> dict[str, object]:
        """Effect sizes over images: queries of one image, and control draws, are averaged first.

        `shift` is after - before, `control_features` and `control_directions` the mean shift under that control,
        `excess_features` and `excess_directions` what the shift has beyond it. Each comes with a 95% BCa interval
        (`_low`, `_high`), its standard error (`_se`) and the p of a paired sign-flip test (`_p`). `d` is Cohen's d with
        the pooled standard deviation (paper, Eq. 12) of after over before, `d_features` and `d_directions` of after
        over the control.
        """
        before, after = self._by_image(self.before_N), self._by_image(self.after_N)
        row: dict[str, object] = {
            "kind": self.kind, "strength": self.strength, "layer": self.layer, "n_features": len(self.features),
            "readout": self.readout, "n": len(before), "before": before.mean(), "after": after.mean(),
            "change_norm": self.change_norm,
        }  # fmt: skip
        contrasts = {"shift": after - before}
        row["d"] = _cohens_d(after, before)
        for name, scores_CN in (("features", self.random_features_CN), ("directions", self.random_directions_CN)):
            control = self._by_image(scores_CN.mean(axis=0))
            contrasts[f"excess_{name}"] = after - control
            contrasts[f"control_{name}"] = control - before
            row[f"d_{name}"] = _cohens_d(after, control)
        for name, difference in contrasts.items():
            interval = bootstrap_mean(difference, n_resamples, self.seed)
            row |= {
                name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high,
                f"{name}_se": interval.standard_error,
                f"{name}_p": float(sign_flip_p(difference, n_permutations, self.seed)),
            }  # fmt: skip
        return row

    def to_frame(self) -> pd.DataFrame:
        """One row per query; controls as `random_features_0`, …, `random_directions_0`, …"""
        columns = {"key": self.keys, "before": self.before_N, "after": self.after_N}
        for name, scores_CN in (("features", self.random_features_CN), ("directions", self.random_directions_CN)):
            columns |= {f"random_{name}_{draw}": scores_N for draw, scores_N in enumerate(scores_CN)}
        return pd.DataFrame(columns)

    def _by_image(self, values_N: np.ndarray) -> np.ndarray:
        return pd.Series(values_N).groupby(np.asarray(self.keys, dtype=object), sort=False).mean().to_numpy()


def summarise(results: Sequence[InterventionResult], n_resamples: int = RESAMPLES) -> pd.DataFrame:
    """One row per intervention, with Holm's correction over them: `shift_p_holm`, `excess_features_p_holm`, …"""
    table = pd.DataFrame([result.summary(n_resamples) for result in results])
    corrected = {f"{name}_holm": holm(table[name]) for name in table.columns if name.endswith("_p")}
    return table.assign(**corrected)


def dose_curves(effects: pd.DataFrame) -> Curves | None:
    """Shift of the readout over the strengths, beside both controls; None where there is one strength only.

    Args:
        effects: as from `summarise`.
    """
    doses = effects.drop_duplicates("strength").sort_values("strength")
    if len(doses) < 2:
        return None
    names = {"features": "shift", "random features": "control_features", "random direction": "control_directions"}
    first = doses.iloc[0]
    return Curves(
        title=f"{first['kind']}: dose and response", about=f"change of the {first['readout'].replace('_', ' ')}",
        x_label={"amplify": "α", "combine": "β"}.get(first["kind"], "value"), x=doses["strength"].tolist(),
        lines=[
            Line(label, *(doses[f"{name}{end}"].to_numpy() for end in ("", "_low", "_high")))
            for label, name in names.items()
        ],
        n=int(first["n"]),
    )  # fmt: skip


def _cohens_d(a: np.ndarray, b: np.ndarray) -> float:
    return float(cohens_d(a, b)) if len(a) > 1 else float("nan")
