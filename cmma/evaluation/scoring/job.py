"""What a metric gets, and what it says about inputs that it cannot use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmma.console import warn
from cmma.errors import DataError
from cmma.evaluation.scoring.config import ScoreConfig
from cmma.evaluation.scoring.registry import METRICS
from cmma.models.spec import ModelSpec

_EXAMPLES = 5


@dataclass
class Problems:
    """Inputs that were left out or are odd, counted by kind, the first of each kind by name."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        """One more of a kind; `what` says which."""
        self.counts[kind] += 1
        named = self.examples.setdefault(kind, [])
        if len(named) < _EXAMPLES:
            named.append(what)

    def as_dict(self) -> dict[str, Any]:
        """Kind → count and examples."""
        return {kind: {"n": n, "examples": self.examples[kind]} for kind, n in self.counts.items()}

    def announce(self) -> None:
        """One line per kind on stderr."""
        for kind, n in self.counts.items():
            more = ", …" if n > _EXAMPLES else ""
            warn(f"{kind.replace('_', ' ')}: {n} ({', '.join(self.examples[kind])}{more})")


@dataclass(frozen=True)
class ScoreJob:
    """One metric to compute.

    Attributes:
        config: the command's options.
        device: torch device name.
        seed: of everything that is drawn.
        encoder: the dual encoder to load; None where the metric uses none.
        problems: what was wrong with the inputs, filled while they are read.
    """

    config: ScoreConfig
    device: str = "cpu"
    seed: int = 0
    encoder: ModelSpec | None = None
    problems: Problems = field(default_factory=Problems)

    @property
    def predictions(self) -> Path:
        """The first input."""
        return Path(self.config.predictions).expanduser()

    @property
    def references(self) -> Path:
        """The second input."""
        return Path(self.config.references).expanduser()

    @property
    def variant(self) -> str:
        """The configured definition, or the usual one."""
        return self.config.variant or METRICS[self.config.metric].variants[0]

    def nothing(self, what: str) -> DataError:
        """The error of a run without anything to score, with what was wrong."""
        found = ", ".join(f"{kind.replace('_', ' ')}: {n} (such as {self.problems.examples[kind][0]})"
                          for kind, n in self.problems.counts.items())
        return DataError(f"{self.config.predictions}: {what}{'; ' + found if found else ''}")
