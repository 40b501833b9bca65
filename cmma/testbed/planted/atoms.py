"""The dictionary that is planted: directions of every atom in every modality, and what class it is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmma.modality import Modality
from cmma.testbed.planted.config import CLASSES, PlantedConfig


@dataclass(frozen=True, eq=False)
class Atoms:
    """The A planted atoms, in the order visual, textual, shared.

    Attributes:
        directions_MAW: float64 [2, A, record width], unit norm; zero where the atom is absent from the modality.
        class_A: index into `CLASSES`.
        parent_A: the atom without which this one never fires; −1 for none.
        names: "visual 0", …, "shared 31".
    """

    directions_MAW: np.ndarray
    class_A: np.ndarray
    parent_A: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.class_A)

    @property
    def present_MA(self) -> np.ndarray:
        """bool [2, A]: which atoms a modality has."""
        return np.stack([self.class_A != CLASSES.index("textual"), self.class_A != CLASSES.index("visual")])

    def of_class(self, name: str) -> np.ndarray:
        """Indices of the atoms of a class."""
        return np.flatnonzero(self.class_A == CLASSES.index(name))


def plant_atoms(config: PlantedConfig) -> Atoms:
    """Draw the atoms of a world: a function of the sizes, ρ, the blocks and the seed alone.

    Directions are uniform on the sphere. A shared concept's text direction is ρ f + √(1 − ρ²) g with g orthogonal to
    its image direction f, so that their cosine is ρ to rounding. Where ρ changes and the seed stays, f and g stay.
    """
    counts = (config.n_visual, config.n_textual, config.n_shared)
    class_A = np.repeat(np.arange(len(CLASSES)), counts)
    rng = np.random.default_rng([config.seed, 0])
    image_AD = _unit(rng.standard_normal((len(class_A), config.d)))
    other_AD = rng.standard_normal(image_AD.shape)
    across_AD = _unit(other_AD - (other_AD * image_AD).sum(1, keepdims=True) * image_AD)
    shared_A = class_A == CLASSES.index("shared")
    rho_A1 = np.where(shared_A, config.cosine, 1.0)[:, None]
    text_AD = rho_A1 * image_AD + np.sqrt(1 - rho_A1**2) * across_AD

    directions_MAW = np.zeros((2, len(class_A), config.blocks * config.d))
    directions_MAW[Modality.VISUAL, :, : config.d] = image_AD
    directions_MAW[Modality.TEXTUAL, :, -config.d :] = text_AD
    directions_MAW[Modality.TEXTUAL, class_A == CLASSES.index("visual")] = 0
    directions_MAW[Modality.VISUAL, class_A == CLASSES.index("textual")] = 0
    names = tuple(f"{name} {number}" for name, n in zip(CLASSES, counts, strict=True) for number in range(n))
    return Atoms(directions_MAW, class_A, _parents(config, counts), names)


def _parents(config: PlantedConfig, counts: tuple[int, ...]) -> np.ndarray:
    """In each class, child number c of the last `n_children` belongs to atom c."""
    parent_A = np.full(sum(counts), -1)
    start = 0
    for n in counts:
        if n:
            children = np.arange(config.n_children)
            parent_A[start + n - config.n_children + children] = start + children
        start += n
    return parent_A


def _unit(vectors_AD: np.ndarray) -> np.ndarray:
    return vectors_AD / np.linalg.norm(vectors_AD, axis=1, keepdims=True)
