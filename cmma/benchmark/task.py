"""What a task is: worlds with a known truth, what a method gets of them, and how it is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cmma.benchmark.config import BenchmarkConfig
from cmma.models.spec import ModelSpec


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        definition: in one line; `docs/testbed_tasks.md` has the formula.
        better: "up", "down", or "" where neither end is the better one.
        needs_truth: the value depends on the truth or the pairing, so that shuffling them must bring it to chance.
        digits: decimals printed.
    """

    definition: str
    better: str = "up"
    needs_truth: bool = True
    digits: int = 3


class Task(ABC):
    """A benchmark task. One world per seed; every method of the seed sees the same one.

    Class attributes:
        protocol: which methods it scores (a key of `registry.PROTOCOLS`).
        title: of the table.
        metrics: in the order of the table.
        uses_model: it looks into the configured model.
        default_methods: scored when none are named. controls: scored always, in rows of their own.
    """

    protocol: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    default_methods: ClassVar[tuple[str, ...]]
    controls: ClassVar[tuple[str, ...]]
    uses_model: ClassVar[bool] = False

    def __init__(self, config: BenchmarkConfig, model: ModelSpec) -> None:
        self.config, self.spec = config, model

    @abstractmethod
    def world(self, seed: int) -> Any:
        """Data and truth of one seed."""

    @abstractmethod
    def run(self, method: Any, world: Any, seed: int) -> Any:
        """What the method finds in the world's data; the truth is not shown to it."""

    @abstractmethod
    def score(self, found: Any, world: Any) -> dict[str, float]:
        """Values of the metrics; one that is not defined here is NaN or left out."""

    @abstractmethod
    def shuffle(self, world: Any, seed: int) -> Any:
        """The world with its truth permuted: whatever is found is then right by chance alone."""

    @abstractmethod
    def chance(self, world: Any) -> dict[str, float]:
        """Expected value of metrics for a finding that has nothing to do with the truth, where it is known."""

    def scaled(self, n: int, least: int = 1) -> int:
        """A number of records or steps times `benchmark.scale`."""
        return max(least, round(n * self.config.scale))
