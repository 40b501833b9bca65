"""Readouts whose main effects and pairwise interactions are known, because they were planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmma.errors import ConfigError, DataError
from cmma.testbed.planted.config import CircuitConfig


@dataclass(frozen=True, eq=False)
class PlantedCircuit:
    """E(z) = g(base + Σ_i m_i z_i + Σ_{i<j} c_ij z_i z_j) over the codes z of K atoms, one value per sample.

    Called with sets of atoms it is the `ablate` of `cmma.cmig.effects.pairwise_effects`. With g the identity, ablating
    i changes E by −z_i (m_i + Σ_j c_ij z_j), and the excess interaction E(i,j) − E(i) − E(j) + E(∅) of a sample is
    exactly c_ij z_i z_j.

    Attributes:
        config: sizes, noise and link.
        features_K: int64 [K], numbers of the atoms, ascending.
        main_K, interaction_KK: m and the symmetric c with zero diagonal.
        codes_NK: z. base_N: what no atom explains.
    """

    config: CircuitConfig
    features_K: NDArray[np.int64]
    main_K: NDArray[np.float64]
    interaction_KK: NDArray[np.float64]
    codes_NK: NDArray[np.float64]
    base_N: NDArray[np.float64]

    @property
    def pairs_P2(self) -> NDArray[np.int64]:
        """Positions (i, j), i < j, of all pairs, in the order of `Effects.pairs_P2`."""
        return np.array(list(combinations(range(len(self.features_K)), 2)), dtype=np.int64)

    @property
    def strength_P(self) -> NDArray[np.float64]:
        """Planted c of every pair: zero where there is no edge."""
        return self.interaction_KK[tuple(self.pairs_P2.T)]

    @property
    def main_KN(self) -> NDArray[np.float64]:
        """E(i) − E(∅) of every sample, exact and free of noise."""
        runs = [(int(feature),) for feature in self.features_K]
        return self._exact(runs) - self._exact([()])

    @property
    def excess_PN(self) -> NDArray[np.float64]:
        """E(i,j) − E(i) − E(j) + E(∅) of every sample, exact and free of noise: c_ij z_i z_j without a link."""
        i, j = self.pairs_P2.T
        if not self.config.saturation:
            return (self.strength_P * self.codes_NK[:, i] * self.codes_NK[:, j]).T
        both = [(int(self.features_K[a]), int(self.features_K[b])) for a, b in self.pairs_P2]
        return self._exact(both) - self.main_KN[i] - self.main_KN[j] - self._exact([()])

    def readout(self, codes_NK: Tensor) -> Tensor:
        """E for other codes of the same samples, [N], differentiable and free of noise."""
        mains_K, interactions_KK = torch.from_numpy(self.main_K), torch.from_numpy(self.interaction_KK)
        pairwise_N = (codes_NK @ interactions_KK * codes_NK).sum(-1) / 2
        total_N = torch.from_numpy(self.base_N) + codes_NK @ mains_K + pairwise_N
        s = self.config.saturation
        return torch.tanh(s * total_N) / s if s else total_N

    def __call__(self, sets: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        """Readout [sets, samples] with each set of atoms at zero; the noise of a run is a function of its set.

        Raises:
            DataError: an atom that the circuit does not read.
        """
        values_SN = self._exact(sets)
        if self.config.noise:
            for row, members in enumerate(sets):
                rng = np.random.default_rng([self.config.seed, 2, len(self.base_N), *sorted(members)])
                values_SN[row] += self.config.noise * rng.standard_normal(len(self.base_N))
        return values_SN

    def _exact(self, sets: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        if unknown := {member for members in sets for member in members} - set(self.features_K.tolist()):
            raise DataError(f"the circuit does not read atoms {sorted(unknown)}; it reads {self.features_K.tolist()}")
        kept_SK = np.stack([~np.isin(self.features_K, members) for members in sets]).astype(np.float64)
        codes_NK = torch.from_numpy(self.codes_NK)
        return np.stack([self.readout(codes_NK * torch.from_numpy(kept_K)).numpy() for kept_K in kept_SK])


def plant_circuit(config: CircuitConfig, codes_NA: NDArray[np.floating]) -> PlantedCircuit:
    """A circuit over some atoms of the samples whose codes these are.

    Which atoms it reads, its effects and its edges depend on the configuration and on A alone, so that the same circuit
    can be planted over other samples.

    Raises:
        ConfigError: fewer atoms than `n_features`.
    """
    n, n_atoms = codes_NA.shape
    k = config.n_features
    if k > n_atoms:
        raise ConfigError(f"circuit.n_features={k} is more than the {n_atoms} atoms of the planted world")
    rng = np.random.default_rng([config.seed, 0])
    features_K = np.sort(rng.choice(n_atoms, k, replace=False))
    main_K = _signed(rng, k, config.main)
    interaction_KK = np.zeros((k, k))
    chosen = rng.permutation(k * (k - 1) // 2)[: config.n_edges]
    i, j = np.array(list(combinations(range(k), 2)))[chosen].T
    interaction_KK[i, j] = interaction_KK[j, i] = _signed(rng, config.n_edges, config.interaction)
    if config.graph != "signed":
        interaction_KK[:] = 0
    if config.graph == "zero":
        main_K[:] = 0
    base_N = np.random.default_rng([config.seed, 1, n]).normal(0, config.base, (n,))
    codes_NK = codes_NA[:, features_K].astype(np.float64)
    return PlantedCircuit(config, features_K, main_K, interaction_KK, codes_NK, base_N)


def _signed(rng: np.random.Generator, n: int, size: float) -> NDArray[np.float64]:
    """± size · U(½, 3⁄2), with equal probability of both signs."""
    return size * rng.uniform(0.5, 1.5, n) * rng.choice([-1.0, 1.0], n)
