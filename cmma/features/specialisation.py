"""Which modality a feature belongs to: classes from bootstrap intervals of its selectivities (paper, Eq. 5, Table 1).

The bootstrap resamples *samples* (image with its text), not tokens, because tokens of one sample are not independent.
With R resamples of N samples it is one product of an [R, N] count matrix with the [N, K] per-sample sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmma.errors import DataError
from cmma.modality import Modality

CLASSES = ("visual", "textual", "cross_modal", "mixed")
DEAD = "dead"
MODALITIES = (Modality.VISUAL, Modality.TEXTUAL)
_VALUES_AT_ONCE = 4_000_000  # resamples × features held at once: 32 MB in float64


class ActivationSums:
    """Streamed per-sample, per-modality totals of latent activations; axis M is (visual, textual).

    Attributes:
        sums_NMK: sum of activations over the sample's tokens of that modality.
        maxima_NMK: largest activation, 0 where the sample has no such token.
        tokens_NM: number of tokens.
        active_MK: number of tokens on which the latent is active, over all samples.
    """

    def __init__(self, n_samples: int, n_latents: int) -> None:
        self.sums_NMK = torch.zeros(n_samples, 2, n_latents)
        self.maxima_NMK = torch.zeros(n_samples, 2, n_latents)
        self.tokens_NM = torch.zeros(n_samples, 2, dtype=torch.int64)
        self.active_MK = torch.zeros(2, n_latents, dtype=torch.int64)

    def add(self, latents_TK: Tensor, modality_T: Tensor, sample_T: Tensor) -> None:
        """Add tokens in any order. Tokens that are neither visual nor textual (dropped, joint views) are left out."""
        latents_TK = latents_TK.float().cpu()
        for row, modality in enumerate(MODALITIES):
            of_T = (modality_T == int(modality)).cpu()
            if not of_T.any():
                continue
            own_TK, own_T = latents_TK[of_T], sample_T.cpu()[of_T]
            self.sums_NMK[:, row].index_add_(0, own_T, own_TK)
            self.tokens_NM[:, row].index_add_(0, own_T, torch.ones_like(own_T))
            self.maxima_NMK[:, row].scatter_reduce_(0, own_T[:, None].expand_as(own_TK), own_TK, "amax")
            self.active_MK[row] += (own_TK > 0).sum(0)

    @property
    def means_NMK(self) -> Tensor:
        """Mean activation per sample and modality; NaN where the sample has no token of that modality."""
        return self.sums_NMK / self.tokens_NM[..., None]

    @property
    def density_MK(self) -> Tensor:
        """Fraction of the modality's tokens on which the latent is active; NaN without tokens."""
        return self.active_MK / self.tokens_NM.sum(0)[:, None]

    @property
    def dead_K(self) -> Tensor:
        """Latents that no token activates."""
        return self.active_MK.sum(0) == 0


@dataclass(frozen=True)
class Selectivities:
    """S^v and S^t of every feature: arrays [..., K]; NaN where the feature is never active (0/0)."""

    visual: np.ndarray
    textual: np.ndarray

    @property
    def product(self) -> np.ndarray:
        """S^v · S^t, in [0, 1] under balanced weights."""
        return self.visual * self.textual


def selectivities(sums_MK: np.ndarray, tokens_M: np.ndarray, weights: str = "balanced") -> Selectivities:
    """Eq. 5 from totals.

    Args:
        sums_MK: total activation per modality, [..., 2, K]. tokens_M: number of tokens, [..., 2].
        weights: "balanced", E[a | any] is the mean of the two modality means, so that S^v + S^t = 2; or "empirical",
            the mean over all tokens, which weighs modalities by how many tokens they have.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_MK = sums_MK / tokens_M[..., None]
        if weights == "balanced":
            any_K = mean_MK.mean(-2)
        elif weights == "empirical":
            any_K = sums_MK.sum(-2) / tokens_M.sum(-1)[..., None]
        else:
            raise ValueError(f"weights are 'balanced' or 'empirical', not {weights!r}")
        return Selectivities(mean_MK[..., 0, :] / any_K, mean_MK[..., 1, :] / any_K)


def specialise(
    sums: ActivationSums, tau: float = 0.1, weights: str = "balanced", n_resamples: int = 1000, level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Class of every latent (paper, Table 1; `docs/paper.md`).

    *cross_modal*: the interval of S^v·S^t lies above `tau`. *visual*, *textual*: it lies below, and the interval of
    the larger selectivity excludes 1. *mixed*: neither. *dead*: no activation at all; never counted in a class.

    Returns:
        One row per latent: `feature, class, s_visual, s_visual_low, s_visual_high, s_textual, …, product, …,
        active_samples, density_visual, density_textual`. Bounds are percentile intervals over resampled samples;
        resamples in which the feature is never active are left out (their selectivity is 0/0).
    """
    if len(sums.tokens_NM) < 2 or (sums.tokens_NM.sum(0) == 0).any():
        raise DataError("selectivities need at least two samples and tokens of both modalities; "
                        f"there are {len(sums.tokens_NM)} samples with {sums.tokens_NM.sum(0).tolist()} tokens")
    tail = (1 - level) / 2
    sums_NMK, tokens_NM = sums.sums_NMK.numpy(), sums.tokens_NM.numpy().astype(np.float64)
    point = selectivities(sums_NMK.sum(0, dtype=np.float64), tokens_NM.sum(0), weights)
    columns: dict[str, np.ndarray] = {}
    for name, value_K in (("s_visual", point.visual), ("s_textual", point.textual), ("product", point.product)):
        columns[name] = value_K
        columns[f"{name}_low"], columns[f"{name}_high"] = np.full_like(value_K, np.nan), np.full_like(value_K, np.nan)

    dead_K = sums.dead_K.numpy()
    for chunk, resampled in _resampled(sums_NMK, tokens_NM, weights, n_resamples, seed, np.flatnonzero(~dead_K)):
        for name, values_RK in (
            ("s_visual", resampled.visual), ("s_textual", resampled.textual), ("product", resampled.product)
        ):
            bounds = torch.nanquantile(torch.from_numpy(values_RK), torch.tensor([tail, 1 - tail]).double(), dim=0)
            columns[f"{name}_low"][chunk], columns[f"{name}_high"][chunk] = bounds.numpy()

    density_MK = sums.density_MK.numpy()
    return pd.DataFrame({
        "feature": np.arange(len(dead_K)), "class": _classes(columns, dead_K, tau), **columns,
        "active_samples": (sums.maxima_NMK.amax(1) > 0).sum(0).numpy(),
        "density_visual": density_MK[0], "density_textual": density_MK[1],
    })


def _classes(columns: dict[str, np.ndarray], dead_K: np.ndarray, tau: float) -> np.ndarray:
    low_K, high_K = columns["product_low"], columns["product_high"]
    below_K = high_K < tau
    visual_larger_K = columns["s_visual"] > columns["s_textual"]
    classes_K = np.full(len(dead_K), "mixed", dtype=object)
    classes_K[low_K > tau] = "cross_modal"
    classes_K[below_K & visual_larger_K & (columns["s_visual_low"] > 1)] = "visual"
    classes_K[below_K & ~visual_larger_K & (columns["s_textual_low"] > 1)] = "textual"
    classes_K[dead_K] = DEAD
    return classes_K


def _resampled(
    sums_NMK: np.ndarray, tokens_NM: np.ndarray, weights: str, n_resamples: int, seed: int, live: np.ndarray
) -> Iterator[tuple[np.ndarray, Selectivities]]:
    """Selectivities [R, chunk] of chunks of live latents; every chunk sees the same resamples."""
    n = len(tokens_NM)
    counts_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    tokens_RM = counts_RN @ tokens_NM
    size = max(1, _VALUES_AT_ONCE // n_resamples)
    for start in range(0, len(live), size):
        chunk = live[start:start + size]
        totals_RMK = np.stack([counts_RN @ sums_NMK[:, row][:, chunk].astype(np.float64) for row in (0, 1)], axis=1)
        yield chunk, selectivities(totals_RMK, tokens_RM, weights)


def class_shares(classes: pd.Series) -> dict[str, float]:
    """Percent of the live features in each class, and `dead` in percent of all latents: a row of Table 1."""
    live = classes[classes != DEAD]
    shares = {name: 100.0 * float((live == name).mean()) if len(live) else float("nan") for name in CLASSES}
    return shares | {DEAD: 100.0 * float((classes == DEAD).mean())}


def shares_over_seeds(per_seed: list[dict[str, float]]) -> dict[str, float | int | str]:
    """Mean share of each class over dictionaries that differ in their seed, with `<class>_error` = SD over seeds.

    One seed has no spread: the errors are then absent.
    """
    frame = pd.DataFrame(per_seed)
    row: dict[str, float | int | str] = {name: float(value) for name, value in frame.mean().items()}
    if len(frame) > 1:
        row |= {f"{name}_error": float(value) for name, value in frame.std(ddof=1).items()}
    return row | {"n": len(frame), "kind": f"SD over {len(frame)} SAE seeds" if len(frame) > 1 else "one SAE seed"}
