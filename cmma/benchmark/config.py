"""What can be configured about a benchmark. Plain data: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.benchmark.registry import TASKS
from cmma.checks import at_least, one_of, positive
from cmma.testbed.planted.config import CircuitConfig, PlantedConfig


@dataclass(frozen=True)
class BenchmarkConfig:
    """One run of `cmma benchmark`.

    Attributes:
        task: name of the task (`docs/testbed_tasks.md`).
        method: names of methods; empty = those that the task names. Controls come on top, always.
        seeds: seeds `seed`, `seed` + 1, …: each has a world of its own. They are the units of the intervals.
        scale: factor on the records and the steps of every task: 0.1 for a quick look.
        n_latents: size of every learnt dictionary, the same for all methods.
        l0_ratio: active latents per record that the methods aim at, per active atom: all are told the truth.
        plugins: modules that are imported first; they register methods of their own (`cmma.benchmark.registry`).
        planted: the world of the task `planted`.
        circuit: the circuit of the tasks `circuit` and `attribution`.
    """

    task: str = "planted"
    method: list[str] = field(default_factory=list)
    seeds: int = 3
    scale: float = 1.0
    n_latents: int = 288
    l0_ratio: float = 1.5
    plugins: list[str] = field(default_factory=list)
    planted: PlantedConfig = field(default_factory=PlantedConfig)
    circuit: CircuitConfig = field(default_factory=CircuitConfig)

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        at_least("benchmark.seeds", self.seeds, 1)
        at_least("benchmark.n_latents", self.n_latents, 2)
        positive("benchmark.scale", self.scale)
        positive("benchmark.l0_ratio", self.l0_ratio)
