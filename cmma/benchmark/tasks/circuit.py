"""Task `circuit`: does a graph builder find the planted interactions, with their sign, and nothing in a null graph?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from sklearn.metrics import average_precision_score

from cmma.benchmark.protocols import Graph, GraphBuilder
from cmma.benchmark.task import Metric, Task
from cmma.testbed.planted.activations import plant
from cmma.testbed.planted.circuits import PlantedCircuit, plant_circuit
from cmma.testbed.planted.codes import sample_codes
from cmma.testbed.planted.config import PlantedConfig

CODES = PlantedConfig(
    d=24, n_visual=16, n_textual=16, n_shared=16, density=0.5, exponent=0.0, group_size=2, coherence=0.7,
)
"""The atoms under circuits: dense enough that pairs meet, in groups so that firing together is not interacting."""


@dataclass(frozen=True, eq=False)
class CircuitWorld:
    """A circuit, its additive twin (the null graph), and the strength of each pair that findings are held against."""

    circuit: PlantedCircuit
    null: PlantedCircuit
    strength_P: np.ndarray


class CircuitTask(Task):
    """See `docs/testbed_tasks.md`."""

    protocol = "graph"
    title = "Planted circuits: recovery of known signed interactions"
    default_methods = ("excess", "eq7", "coactivation", "cross_derivative")
    controls = ("random",)
    metrics: ClassVar = {
        "auprc": Metric("average precision of the scores over all pairs"),
        "precision": Metric("declared edges that are planted"),
        "recall": Metric("planted edges that are declared"),
        "sign_accuracy": Metric("planted edges whose sign is right, declared or not"),
        "declared": Metric("declared edges", better="", needs_truth=False, digits=1),
        "null_discoveries": Metric("edges declared in the additive twin", better="down", needs_truth=False, digits=1),
    }

    def world(self, seed: int) -> CircuitWorld:
        """A circuit over fresh samples of its own world."""
        samples = plant(replace(CODES, seed=seed), "test", 0, self.scaled(200, 16))
        codes_NA = sample_codes(samples.codes_NMA, samples.atoms)
        config = replace(self.config.circuit, seed=seed)
        circuit = plant_circuit(config, codes_NA)
        null = plant_circuit(replace(config, graph="additive"), codes_NA)
        return CircuitWorld(circuit, null, circuit.strength_P)

    def run(self, method: GraphBuilder, world: CircuitWorld, seed: int) -> tuple[Graph, Graph]:
        """The graph of the circuit and that of its additive twin."""
        return method.build(world.circuit, seed), method.build(world.null, seed)

    def shuffle(self, world: CircuitWorld, seed: int) -> CircuitWorld:
        """Strengths permuted over pairs."""
        rng = np.random.default_rng([seed, 5])
        return replace(world, strength_P=rng.permutation(world.strength_P))

    def chance(self, world: CircuitWorld) -> dict[str, float]:
        """A random order has the share of edges as precision, also on average over the order."""
        share = float((world.strength_P != 0).mean())
        return {"auprc": share, "precision": share, "sign_accuracy": 0.5}

    def score(self, found: tuple[Graph, Graph], world: CircuitWorld) -> dict[str, float]:
        """Edges against the planted ones."""
        graph, null = found
        truth_P = world.strength_P != 0
        hits = int((graph.edge_P & truth_P).sum())
        signed_P = truth_P & (graph.sign_P != 0)
        right_P = graph.sign_P == np.sign(world.strength_P)
        nan = float("nan")
        return {
            "auprc": float(average_precision_score(truth_P, graph.score_P)) if truth_P.any() else nan,
            "precision": hits / int(graph.edge_P.sum()) if graph.edge_P.any() else nan,
            "recall": hits / int(truth_P.sum()) if truth_P.any() else nan,
            "sign_accuracy": float(right_P[signed_P].mean()) if signed_P.any() else nan,
            "declared": float(graph.edge_P.sum()), "null_discoveries": float(null.edge_P.sum()),
        }
