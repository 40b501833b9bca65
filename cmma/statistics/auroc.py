"""Area under the ROC curve over things that come several to an image."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmma.statistics.bootstrap import RESAMPLES, Interval, bootstrap_statistic

_PAIRS_AT_ONCE = 2**24


def auroc_by_image(
    scores: ArrayLike, truth: ArrayLike, images: Sequence[Hashable], n_resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """P(score of a true thing > score of a false one), ties counting half; the interval resamples images.

    Things of one image (its words) come and go together. Every pair of a true and a false thing counts, whichever
    images they are of. NaN without both kinds.

    Args:
        scores, truth: [P], one per thing.
        images: the image of each, length P.
    """
    score_P, truth_P = np.asarray(scores, dtype=float), np.asarray(truth, dtype=bool)
    number = {image: index for index, image in enumerate(dict.fromkeys(images))}
    image_P = np.array([number[image] for image in images], dtype=int)
    n = len(number)
    true_I, false_I = (np.bincount(image_P[own], minlength=n).astype(float) for own in (truth_P, ~truth_P))
    wins_II = _wins(score_P[truth_P], image_P[truth_P], score_P[~truth_P], image_P[~truth_P], n)

    def statistic(image_RI: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        flat_RI = image_RI.astype(int).reshape(-1, image_RI.shape[-1])
        weight_RI = np.zeros((len(flat_RI), n))
        np.add.at(weight_RI, (np.arange(len(flat_RI))[:, None], flat_RI), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            value_R = ((weight_RI @ wins_II) * weight_RI).sum(1) / ((weight_RI @ true_I) * (weight_RI @ false_I))
        return value_R.reshape(image_RI.shape[:-1])

    return bootstrap_statistic(statistic, np.arange(n), n_resamples=n_resamples, seed=seed)


def _wins(
    true_T: NDArray[np.float64], true_image_T: NDArray[np.int64], false_F: NDArray[np.float64],
    false_image_F: NDArray[np.int64], n: int,
) -> NDArray[np.float64]:  # fmt: skip
    """[n, n]: pairs of a true thing of the first image and a false thing of the second that are in the right order."""
    wins_II = np.zeros((n, n))
    for at in np.array_split(np.arange(len(true_T)), 1 + len(true_T) * len(false_F) // _PAIRS_AT_ONCE):
        won_TF = (true_T[at, None] > false_F) + 0.5 * (true_T[at, None] == false_F)
        by_image_IF = np.zeros((n, len(false_F)))
        np.add.at(by_image_IF, true_image_T[at], won_TF)
        np.add.at(wins_II.T, false_image_F, by_image_IF.T)
    return wins_II
