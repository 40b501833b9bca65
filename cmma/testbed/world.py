"""How the scenes of each split are drawn.

The training split holds a planted cause of hallucination (`TRIGGER` → `PARTNER`); see `BIAS` and `docs/testbed.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmma.errors import ConfigError
from cmma.testbed import draws
from cmma.testbed.pairs import FACTORS, change_one_factor
from cmma.testbed.scenes import COLORS, GRID, MAX_OBJECTS, SHAPES, SIZES, TEXTURES, Scenes

TRIGGER = ("blue", "ring")
PARTNER = ("yellow", "star")
SPLITS = ("train", "balanced", "counter", "pairs")
_COUNT_CUMULATIVE = np.cumsum([0.1, 0.3, 0.3])  # P(1), P(2), P(3) objects; the rest is P(4)


@dataclass(frozen=True)
class Bias:
    """How the trigger and its partner occur in a split; all are probabilities.

    Attributes:
        trigger: the trigger is in the scene.
        partner: the partner is in the scene, given that the trigger is.
        partner_alone: the partner is in the scene, given that the trigger is not.
        invisible: the partner is drawn below the noise, given trigger and partner.
    """

    trigger: float
    partner: float
    partner_alone: float
    invisible: float


BIAS = {
    "train": Bias(trigger=0.20, partner=0.95, partner_alone=0.08, invisible=0.5),
    "balanced": Bias(trigger=0.08, partner=0.08, partner_alone=0.08, invisible=0.0),
    "counter": Bias(trigger=1.0, partner=0.0, partner_alone=0.0, invisible=0.0),
    "pairs": Bias(trigger=0.08, partner=0.08, partner_alone=0.08, invisible=0.0),
}


def concept(color: str, shape: str) -> int:
    """Index of a colour–shape conjunction in 0 … 35."""
    return COLORS.index(color) * len(SHAPES) + SHAPES.index(shape)


def sample_scenes(n: int, split: str, seed: int, start: int = 0) -> Scenes:
    """Draw scenes `start` … `start + n` of a split; scene i depends on (seed, split, i) only.

    Raises:
        ConfigError: no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown shapes split '{split}'; valid: {', '.join(SPLITS)}")
    indices_N = np.arange(start, start + n)
    keys_N = draws.sample_keys(seed, SPLITS.index(split), indices_N // 2 if split == "pairs" else indices_N)
    scenes = _draw(keys_N, split)
    if split == "pairs":
        corrupt = indices_N % 2 == 1
        scenes = change_one_factor(scenes, rows=np.flatnonzero(corrupt), factors=pair_factors(indices_N))
    return scenes.in_reading_order()


def pair_factors(indices_N: np.ndarray | int) -> np.ndarray:
    """The factor (index into FACTORS) in which the pair of each sample of the `pairs` split differs."""
    return (np.asarray(indices_N) // 2) % len(FACTORS)


def _draw(keys_N: np.ndarray, split: str) -> Scenes:
    bias, n = BIAS[split], len(keys_N)
    choice_ND = draws.uniforms(keys_N, purpose=0, count=4)
    trigger_N = choice_ND[:, 0] < bias.trigger
    partner_N = choice_ND[:, 1] < np.where(trigger_N, bias.partner, bias.partner_alone)

    count_N = 1 + np.searchsorted(_COUNT_CUMULATIVE, choice_ND[:, 2], side="right")
    if split == "counter":  # a biased scene of two to four objects whose partner was taken away
        count_N = np.maximum(count_N, 2) - 1
    if split == "pairs":  # room for a second object to relate to, and for one to appear
        count_N = np.clip(count_N, 2, 3)
    count_N = np.maximum(count_N, trigger_N.astype(int) + partner_N)

    rank_NC = draws.uniforms(keys_N, purpose=1, count=len(COLORS) * len(SHAPES))
    rank_NC[:, concept(*TRIGGER)] = np.where(trigger_N, -2.0, 2.0)  # first in line, or never
    rank_NC[:, concept(*PARTNER)] = np.where(partner_N, -1.0, 2.0)
    if split == "counter":  # no star at all: every star in an answer is then an object hallucination
        rank_NC[:, SHAPES.index(PARTNER[1]) :: len(SHAPES)] = 2.0
    concept_NM = np.argsort(rank_NC, axis=1)[:, :MAX_OBJECTS]
    cell_NM = np.argsort(draws.uniforms(keys_N, purpose=2, count=GRID * GRID), axis=1)[:, :MAX_OBJECTS]
    detail_NMF = draws.uniforms(keys_N, purpose=3, count=4 * MAX_OBJECTS).reshape(n, MAX_OBJECTS, 4)

    hidden_N = trigger_N & partner_N & (choice_ND[:, 3] < bias.invisible)
    visible_NM = ~(hidden_N[:, None] & (concept_NM == concept(*PARTNER)))
    return Scenes(
        count=count_N,
        shape=concept_NM % len(SHAPES),
        color=concept_NM // len(SHAPES),
        size=(detail_NMF[:, :, 0] * len(SIZES)).astype(int),
        texture=(detail_NMF[:, :, 1] * len(TEXTURES)).astype(int),
        cell=cell_NM,
        jitter=detail_NMF[:, :, 2:] * 2 - 1,
        visible=visible_NM,
        keys=keys_N,
    )
