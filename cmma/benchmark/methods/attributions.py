"""Attribution methods: what would ablating each feature alone change, on average?"""

from __future__ import annotations

import numpy as np
import torch

from cmma.benchmark.registry import register
from cmma.testbed.planted.circuits import PlantedCircuit

_STEPS = 10  # of integrated gradients


@register("attribution", "ablation")
class Ablation:
    """Ablate each feature and measure: exact on the samples at hand."""

    def attribute(self, circuit: PlantedCircuit, seed: int) -> np.ndarray:
        """See `AttributionMethod.attribute`."""
        clean_N, *single_KN = circuit([(), *((feature,) for feature in circuit.features_K.tolist())])
        return (np.stack(single_KN) - clean_N).mean(1)


@register("attribution", "gradient")
class GradientTimesActivation:
    """−z ⊙ ∂E/∂z at the codes: the linearised ablation, one backward pass."""

    def attribute(self, circuit: PlantedCircuit, seed: int) -> np.ndarray:
        """See `AttributionMethod.attribute`."""
        return _gradient_effect(circuit, 1.0)


@register("attribution", "integrated_gradients")
class IntegratedGradients:
    """The same with the gradient averaged over the way from all features ablated to none."""

    def attribute(self, circuit: PlantedCircuit, seed: int) -> np.ndarray:
        """See `AttributionMethod.attribute`."""
        return np.mean([_gradient_effect(circuit, (step + 0.5) / _STEPS) for step in range(_STEPS)], axis=0)


@register("attribution", "activation")
class Activation:
    """Mean activation: what is large is taken to matter; no sign."""

    def attribute(self, circuit: PlantedCircuit, seed: int) -> np.ndarray:
        """See `AttributionMethod.attribute`."""
        return circuit.codes_NK.mean(0)


@register("attribution", "random")
class Random:
    """Control: normal random numbers."""

    def attribute(self, circuit: PlantedCircuit, seed: int) -> np.ndarray:
        """See `AttributionMethod.attribute`."""
        return np.random.default_rng([seed, 4]).standard_normal(len(circuit.features_K))


def _gradient_effect(circuit: PlantedCircuit, scale: float) -> np.ndarray:
    codes_NK = torch.from_numpy(circuit.codes_NK)
    leaf_NK = (scale * codes_NK).requires_grad_()
    gradient_NK, = torch.autograd.grad(circuit.readout(leaf_NK).sum(), leaf_NK)
    return -(codes_NK * gradient_NK).mean(0).numpy()
