"""Are the planted atoms in the dictionary? Matching, recall, and what a random dictionary would reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import linear_sum_assignment

from cmma.testbed.planted.atoms import Atoms

RECALL_AT, SAME_AT = 0.9, 0.95


@dataclass(frozen=True, eq=False)
class Matching:
    """Atoms against latents; axis M is the modality whose directions are compared.

    Attributes:
        best_MA, column_MA: largest cosine of each atom with any latent, and which latent that is.
        matched_MA, latent_MA: cosine and latent of the one-to-one (Hungarian) matching of largest total cosine.
    All are NaN or −1 where the modality does not have the atom (or where there are fewer latents than atoms).
    """

    best_MA: NDArray[np.float64]
    column_MA: NDArray[np.int64]
    matched_MA: NDArray[np.float64]
    latent_MA: NDArray[np.int64]


def match(decoder_MKW: NDArray, atoms: Atoms) -> Matching:
    """Match in each modality by itself: the atoms that it has to the latents' directions in it."""
    shape = atoms.present_MA.shape
    best_MA, matched_MA = np.full(shape, np.nan), np.full(shape, np.nan)
    column_MA, latent_MA = np.full(shape, -1), np.full(shape, -1)
    for modality, present_A in enumerate(atoms.present_MA):
        decoder_KW = decoder_MKW[modality].astype(np.float64)
        size_K1 = np.linalg.norm(decoder_KW, axis=1, keepdims=True)
        unit_KW = np.divide(decoder_KW, size_K1, out=np.zeros_like(decoder_KW), where=size_K1 > 0)
        cosine_AK = atoms.directions_MAW[modality, present_A] @ unit_KW.T
        best_MA[modality, present_A] = cosine_AK.max(1)
        column_MA[modality, present_A] = cosine_AK.argmax(1)
        row, column = linear_sum_assignment(-cosine_AK)
        members = np.flatnonzero(present_A)[row]
        matched_MA[modality, members] = cosine_AK[row, column]
        latent_MA[modality, members] = column
    return Matching(best_MA, column_MA, matched_MA, latent_MA)


def recovery(matching: Matching, atoms: Atoms) -> dict[str, float]:
    """Numbers of a matching; a shared concept counts once in each modality.

    Keys: max_cosine (mean over atoms, no matching), matched_cosine and recall_visual, recall_textual, recall_shared
    (share of matched cosines ≥ 0.9), cr (share of shared concepts whose best column is the same in both modalities, at
    cosine > 0.95 in both), gre (mean of 1 − max(0, cosine)² with the best column: the share of an atom's squared norm
    that the best scaled column leaves).
    """
    shared_A = atoms.of_class("shared")
    same_A = matching.column_MA[0, shared_A] == matching.column_MA[1, shared_A]
    close_A = (matching.best_MA[:, shared_A] > SAME_AT).all(0)
    matched_MA = np.nan_to_num(matching.matched_MA, nan=0.0)  # an atom for which no latent is left is not found
    result = {
        "max_cosine": float(np.nanmean(matching.best_MA)),
        "matched_cosine": float(matched_MA[atoms.present_MA].mean()),
        "gre": float(np.nanmean(1 - matching.best_MA.clip(min=0) ** 2)),
        "cr": float((same_A & close_A).mean()) if len(shared_A) else float("nan"),
    }
    for name in ("visual", "textual", "shared"):
        members = atoms.of_class(name)
        recalled = matched_MA[:, members][atoms.present_MA[:, members]] >= RECALL_AT
        result[f"recall_{name}"] = float(recalled.mean()) if len(recalled) else float("nan")
    return result


def random_cosines(d: int, n_latents: int) -> dict[str, float]:
    """Expected max_cosine, recall and gre of `n_latents` directions that are uniform on the sphere in d dimensions.

    The cosine of two of them is 2 b − 1 with b ~ Beta((d−1)/2, (d−1)/2); the largest of K has distribution F^K.
    """
    grid = np.linspace(-1, 1, 20_001)
    law = stats.beta((d - 1) / 2, (d - 1) / 2)
    below = law.cdf((grid + 1) / 2) ** n_latents
    middle, mass = (grid[1:] + grid[:-1]) / 2, np.diff(below)
    return {
        "max_cosine": float(middle @ mass),
        "gre": float((1 - middle.clip(min=0) ** 2) @ mass),
        "recall": float(1 - law.cdf((RECALL_AT + 1) / 2) ** n_latents),
    }
