"""What can be configured about phases. Plain data: no torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmma.checks import at_least
from cmma.errors import ConfigError


@dataclass(frozen=True)
class PhasesConfig:
    """Dictionaries at every layer of some models, over seeds.

    Attributes:
        models: names in conf/model/; empty = the model of the run alone.
        seeds: of the dictionaries; a unit of the statistics is a model with a seed.
        n_resamples: of the samples (intervals of a layer's activity and of a model's change points) and of the units.
        most_changes: change points looked for, at most.
    """

    models: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    n_resamples: int = 1000
    most_changes: int = 3

    def __post_init__(self) -> None:
        at_least("phases.n_resamples", self.n_resamples, 1)
        at_least("phases.most_changes", self.most_changes, 1)
        for name in ("models", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"phases.{name}={values} names one twice")
        if not self.seeds:
            raise ConfigError("phases.seeds is empty; name the seeds of the dictionaries")
