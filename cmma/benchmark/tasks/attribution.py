"""Task `attribution`: does a method rank features by what ablating them changes?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.stats import spearmanr

from cmma.benchmark.protocols import AttributionMethod
from cmma.benchmark.task import Metric, Task
from cmma.benchmark.tasks.circuit import CODES
from cmma.testbed.planted.activations import plant
from cmma.testbed.planted.circuits import PlantedCircuit, plant_circuit
from cmma.testbed.planted.codes import sample_codes

_TOP = 0.25  # share of the features that are to be named first
_SATURATION = 0.5  # without a link gradients are exact and nothing is asked of a method


@dataclass(frozen=True, eq=False)
class AttributionWorld:
    """A circuit over the samples that methods see, and the mean effect of each feature over many others."""

    circuit: PlantedCircuit
    effect_K: np.ndarray


class AttributionTask(Task):
    """See `docs/testbed_tasks.md`."""

    protocol = "attribution"
    title = "Attribution: rank of known main effects behind a saturating readout"
    default_methods = ("ablation", "gradient", "integrated_gradients", "activation")
    controls = ("random",)
    metrics: ClassVar = {
        "rank_correlation": Metric("Spearman correlation of the sizes of estimated and true mean effects"),
        "signed_rank_correlation": Metric("the same of the effects with their sign"),
        "top_recall": Metric("quarter of the features with the largest effects found among the method's largest"),
    }

    def world(self, seed: int) -> AttributionWorld:
        """The same circuit over the samples at hand and over a large number of fresh ones, free of noise."""
        config = replace(self.config.circuit, seed=seed, saturation=self.config.circuit.saturation or _SATURATION)
        circuits = []
        for split, n in (("test", self.scaled(96, 16)), ("train", self.scaled(4000, 200))):
            samples = plant(replace(CODES, seed=seed), split, 0, n)
            circuits.append(plant_circuit(config, sample_codes(samples.codes_NMA, samples.atoms)))
        seen, population = circuits
        return AttributionWorld(seen, population.main_KN.mean(1))

    def run(self, method: AttributionMethod, world: AttributionWorld, seed: int) -> np.ndarray:
        """Estimated mean effects [K]."""
        return method.attribute(world.circuit, seed)

    def shuffle(self, world: AttributionWorld, seed: int) -> AttributionWorld:
        """True effects permuted over features."""
        return replace(world, effect_K=np.random.default_rng([seed, 6]).permutation(world.effect_K))

    def chance(self, world: AttributionWorld) -> dict[str, float]:
        """No correlation, and as many of the top features as there are places for."""
        return {"rank_correlation": 0.0, "signed_rank_correlation": 0.0, "top_recall": _top(world.effect_K).mean()}

    def score(self, found: np.ndarray, world: AttributionWorld) -> dict[str, float]:
        """Ranks against the true ones; a method that gives no negative value has no sign to be judged."""
        signed = bool((found < 0).any())
        wanted_K, named_K = _top(world.effect_K), _top(found)
        return {
            "rank_correlation": float(spearmanr(np.abs(found), np.abs(world.effect_K)).statistic),
            "signed_rank_correlation": float(spearmanr(found, world.effect_K).statistic) if signed else float("nan"),
            "top_recall": float((wanted_K & named_K).sum() / wanted_K.sum()),
        }


def _top(effect_K: np.ndarray) -> np.ndarray:
    """bool [K]: the features of largest size."""
    n = max(1, round(_TOP * len(effect_K)))
    named_K = np.zeros(len(effect_K), dtype=bool)
    named_K[np.argsort(-np.abs(effect_K), kind="stable")[:n]] = True
    return named_K
