"""Graph builders: the exact pairwise measurement of cmma, and what is done without it."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from cmma.benchmark.protocols import Graph
from cmma.benchmark.registry import register
from cmma.cmig.effects import pairwise_effects
from cmma.cmig.inference import edge_table
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p
from cmma.testbed.planted.circuits import PlantedCircuit

_ALPHA = 0.05  # false discovery rate of every builder's declared edges
_PERMUTATIONS, _MAX_PERMUTATIONS = 1000, 20_000


@register("graph", "excess")
class Excess:
    """cmma's graph: the signed excess interaction of every pair, permutation tests, Benjamini–Hochberg."""

    def build(self, circuit: PlantedCircuit, seed: int) -> Graph:
        """See `GraphBuilder.build`."""
        effects = pairwise_effects(circuit, circuit.features_K.tolist())
        table = edge_table(effects, _PERMUTATIONS, _MAX_PERMUTATIONS, resamples=20, seed=seed)
        once = table.head(len(effects.pairs_P2))  # the first half has every pair once
        mean_P = once["excess_mean"].to_numpy()
        return Graph(np.abs(mean_P), (once["q_excess"] < _ALPHA).to_numpy(), np.sign(mean_P))


@register("graph", "eq7")
class ConditionalEffect:
    """Eq. 7 as written: the mean absolute effect of j once i is ablated, the larger of both directions; no sign."""

    def build(self, circuit: PlantedCircuit, seed: int) -> Graph:
        """See `GraphBuilder.build`. Declared edges: either direction differs from the target's own main effect."""
        effects = pairwise_effects(circuit, circuit.features_K.tolist())
        table = edge_table(effects, _PERMUTATIONS, _MAX_PERMUTATIONS, resamples=20, seed=seed)
        strength_2P = table["strength"].to_numpy().reshape(2, -1)
        q_2P = table["q_beyond"].to_numpy().reshape(2, -1)
        return Graph(strength_2P.max(0), q_2P.min(0) < _ALPHA, np.zeros(strength_2P.shape[1]))


@register("graph", "coactivation")
class Coactivation:
    """Pearson correlation of the codes, which knows nothing of the readout."""

    def build(self, circuit: PlantedCircuit, seed: int) -> Graph:
        """See `GraphBuilder.build`. Declared edges: t test of the correlation, Benjamini–Hochberg."""
        i, j = circuit.pairs_P2.T
        n = len(circuit.codes_NK)
        r_P = np.asarray(np.corrcoef(circuit.codes_NK.T))[i, j]
        r_P = np.nan_to_num(r_P)  # a feature that is silent on all samples
        t_P = r_P * np.sqrt((n - 2) / np.clip(1 - r_P**2, 1e-12, None))
        p_P = 2 * stats.t.sf(np.abs(t_P), n - 2)
        return Graph(np.abs(r_P), benjamini_hochberg(p_P) < _ALPHA, np.sign(r_P))


@register("graph", "cross_derivative")
class CrossDerivative:
    """z_i z_j ∂²E/∂z_i∂z_j at the clean codes: one backward pass per feature and no ablation at all."""

    def build(self, circuit: PlantedCircuit, seed: int) -> Graph:
        """See `GraphBuilder.build`. Declared edges: sign-flip test over samples, Benjamini–Hochberg."""
        codes_NK = torch.from_numpy(circuit.codes_NK).requires_grad_()
        slope_NK, = torch.autograd.grad(circuit.readout(codes_NK).sum(), codes_NK, create_graph=True)
        rows = [torch.autograd.grad(slope_NK[:, k].sum(), codes_NK, retain_graph=True)[0]
                for k in range(codes_NK.shape[1])]
        curvature_KNK = torch.stack(rows).numpy()
        i, j = circuit.pairs_P2.T
        value_NP = curvature_KNK[i, :, j].T * circuit.codes_NK[:, i] * circuit.codes_NK[:, j]
        mean_P = value_NP.mean(0)
        p_P = sign_flip_p(value_NP, _PERMUTATIONS, seed, _MAX_PERMUTATIONS)
        return Graph(np.abs(mean_P), benjamini_hochberg(p_P) < _ALPHA, np.sign(mean_P))


@register("graph", "random")
class RandomGraph:
    """Control: random scores; every pair is declared with probability 0.05."""

    def build(self, circuit: PlantedCircuit, seed: int) -> Graph:
        """See `GraphBuilder.build`."""
        rng = np.random.default_rng([seed, 3])
        score_P = rng.random(len(circuit.pairs_P2))
        return Graph(score_P, score_P > 1 - _ALPHA, rng.choice([-1.0, 1.0], len(score_P)))
