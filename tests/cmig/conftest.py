"""Readouts whose interactions are known because they were planted, and tiny models with a dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples


class PlantedReadout:
    """E(off) = base − Σ_{i off} m_i − Σ_{(i,j) both off} c_ij (+ noise), each sample with its own m_i and c_ij.

    Args:
        mains: feature → mean main effect; samples are drawn within ±50% of it.
        pairs: (i, j) → mean excess interaction, likewise.
        noise: standard deviation of independent noise on every run.
    """

    def __init__(
        self, mains: Mapping[int, float], pairs: Mapping[tuple[int, int], float], samples: int, noise: float = 0.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.rng, self.noise = np.random.default_rng(seed), noise
        self.base_N = self.rng.normal(0, 1, samples)
        self.mains = {feature: mean * self.rng.uniform(0.5, 1.5, samples) for feature, mean in mains.items()}
        self.pairs = {pair: mean * self.rng.uniform(0.5, 1.5, samples) for pair, mean in pairs.items()}

    def __call__(self, sets: Sequence[tuple[int, ...]]) -> np.ndarray:
        rows = []
        for off in sets:
            value_N = self.base_N + self.rng.normal(0, self.noise, len(self.base_N))
            value_N -= sum(self.mains[feature] for feature in off)
            value_N -= sum(strength for pair, strength in self.pairs.items() if set(pair) <= set(off))
            rows.append(value_N)
        return np.stack(rows)


@pytest.fixture(scope="session")
def plant():
    """The class, for tests that plant their own."""
    return PlantedReadout


@pytest.fixture(scope="session")
def scenes():
    """Five images of the shapes world."""
    return list(generate_samples("balanced", 0, 5))


@pytest.fixture(scope="session")
def dictionary():
    """(model, layer) → an untrained TopK dictionary whose standardiser differs between the modalities."""

    def make(model, layer):
        blocks, width = model.record_blocks(layer), model.record_width(layer)
        generator = torch.Generator().manual_seed(0)
        present_MD = Standardiser.identity(blocks).scale_MD
        mean_MD = torch.randn(3, width, generator=generator) * 0.1 * present_MD
        scale_MD = torch.tensor([0.5, 2.0, 1.0])[:, None] * present_MD
        sae = build_sae(preset("topk", n_latents=24, k=10), width, Standardiser(mean_MD, scale_MD, blocks))
        return sae.requires_grad_(False)

    return make
