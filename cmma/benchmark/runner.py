"""Run a task: every method and control in the world of every seed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cmma.benchmark.config import BenchmarkConfig
from cmma.benchmark.registry import find_methods, make_task
from cmma.benchmark.task import Metric
from cmma.console import progress
from cmma.models.spec import ModelSpec
from cmma.statistics.bootstrap import Interval
from cmma.statistics.student import student_mean

SHUFFLED = "shuffled"


@dataclass(frozen=True)
class Results:
    """What a benchmark measured.

    Attributes:
        config: what was run. seeds: of the worlds.
        title, metrics: of the task. model: name of the model that it looked into; empty for tasks without one.
        values: row → metric → one value per seed, None where it is not defined. Rows: methods, controls, "shuffled".
        shuffled_method: whose findings the shuffled row scores.
        chance: metric → value at chance, mean over seeds; only where it is known.
        seconds: row → time to run and score it once, mean over seeds.
    """

    config: BenchmarkConfig
    seeds: tuple[int, ...]
    title: str
    metrics: Mapping[str, Metric]
    model: str
    values: dict[str, dict[str, list[float | None]]]
    shuffled_method: str
    chance: dict[str, float]
    seconds: dict[str, float]

    def interval(self, row: str, metric: str) -> Interval:
        """Mean over seeds with its 95% t interval; NaN where the metric is not defined for the row."""
        return student_mean([math.nan if value is None else value for value in self.values[row][metric]])


def run_benchmark(config: BenchmarkConfig, seed: int, model: ModelSpec) -> Results:
    """Score the configured methods and all controls.

    Args:
        config: task, methods, seeds and sizes.
        seed: of the first world; the others follow.
        model: for the tasks that look into a model.

    Raises:
        ConfigError: a method that the task's protocol does not have.
    """
    task = make_task(config, model)
    names = list(config.method or task.default_methods)
    methods = find_methods(task.protocol, [*names, *task.controls], config.plugins)
    seeds = tuple(range(seed, seed + config.seeds))
    rows = [*methods, SHUFFLED]
    values: dict[str, dict[str, list[float | None]]] = {row: {name: [] for name in task.metrics} for row in rows}
    chances: list[dict[str, float]] = []
    seconds = dict.fromkeys(rows, 0.0)
    with progress(f"Benchmark {config.task}", total=len(rows) * len(seeds)) as bar:
        for number in seeds:
            world = task.world(number)
            chances.append(task.chance(world))
            first: Any = None
            for row in rows:
                bar.note(f"seed {number}, {row}")
                started = time.perf_counter()
                if row == SHUFFLED:
                    scores = task.score(first, task.shuffle(world, number))
                    scores = {name: value for name, value in scores.items() if task.metrics[name].needs_truth}
                else:
                    torch.manual_seed(number)
                    found = task.run(methods[row], world, number)
                    first = found if first is None else first
                    scores = task.score(found, world)
                for name in task.metrics:
                    value = scores.get(name, math.nan)
                    values[row][name].append(value if math.isfinite(value) else None)
                seconds[row] += (time.perf_counter() - started) / len(seeds)
                bar.advance()
    chance = {name: sum(entry[name] for entry in chances) / len(chances) for name in chances[0]}
    shown = model.name if task.uses_model else ""
    return Results(config, seeds, task.title, task.metrics, shown, values, rows[0], chance, seconds)
