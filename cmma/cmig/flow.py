"""Which way influence runs between the modalities: visual→textual against textual→visual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmma.cmig.effects import Effects
from cmma.statistics.bootstrap import Interval, bootstrap_mean
from cmma.statistics.permutation import sign_flip_p


@dataclass(frozen=True)
class Flow:
    """Visual→textual against textual→visual, averaged over all (visual, textual) pairs, in readout spreads.

    Attributes:
        visual_to_textual, textual_to_visual: mean Eq. 7 strength, intervals over samples.
        difference: the first minus the second, with p from swapping the two directions within samples.
        beyond_difference, beyond_p: the same after each target's own main effect is taken away, since Eq. 7 alone
            is larger towards whichever class has the larger main effects.
        pairs: number of measured (visual, textual) pairs; they count for as many as they stand for.
    """

    visual_to_textual: Interval
    textual_to_visual: Interval
    difference: Interval
    p: float
    beyond_difference: Interval
    beyond_p: float
    pairs: int

    def as_dict(self) -> dict:
        """Nested plain values for JSON."""
        return {
            name: value.as_dict() if isinstance(value, Interval) else value
            for name, value in ((field, getattr(self, field)) for field in self.__dataclass_fields__)
        }


def modality_flow(
    effects: Effects, classes: Sequence[str], permutations: int = 1000, resamples: int = 10_000, seed: int = 0
) -> Flow | None:
    """Direction of influence between modalities; None if no visual–textual pair was measured.

    Args:
        classes: specialisation class of each feature of `effects.features_K`, among them "visual" and "textual".
    """
    kind_K = np.asarray(classes)
    edges_E2, conditional_EN = effects.directed()
    source_E, target_E = kind_K[edges_E2.T]
    towards_text = (source_E == "visual") & (target_E == "textual")
    towards_image = (source_E == "textual") & (target_E == "visual")
    if not towards_text.any():
        return None
    strength_EN = np.abs(conditional_EN) / effects.spread
    beyond_EN = strength_EN - np.abs(effects.main_KN[edges_E2[:, 1]]) / effects.spread
    weight_E = np.tile(effects.weight_P, 2)

    def mean_N(values_EN: np.ndarray, of_E: np.ndarray) -> np.ndarray:
        return np.average(values_EN[of_E], axis=0, weights=weight_E[of_E])

    to_text_N, to_image_N = mean_N(strength_EN, towards_text), mean_N(strength_EN, towards_image)
    beyond_N = mean_N(beyond_EN, towards_text) - mean_N(beyond_EN, towards_image)
    return Flow(
        visual_to_textual=bootstrap_mean(to_text_N, resamples, seed),
        textual_to_visual=bootstrap_mean(to_image_N, resamples, seed),
        difference=bootstrap_mean(to_text_N - to_image_N, resamples, seed),
        p=float(sign_flip_p(to_text_N - to_image_N, permutations, seed)),
        beyond_difference=bootstrap_mean(beyond_N, resamples, seed),
        beyond_p=float(sign_flip_p(beyond_N, permutations, seed)),
        pairs=int(towards_text.sum()),
    )
