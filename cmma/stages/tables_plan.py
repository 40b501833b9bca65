"""The runs behind the tables of the paper: read from conf/tables/SCALE.yaml, composed, and brought into being."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from cmma.artifacts.store import Artifact
from cmma.config import Config, config_dir, load_group, schema, to_config
from cmma.errors import ConfigError
from cmma.stages.benchmark import results_folder
from cmma.stages.keys import Keys
from cmma.stages.runner import outputs_folder
from cmma.stages.table import STAGES

BENCHMARK = "benchmark"


@dataclass(frozen=True)
class Wanted:
    """One artifact, or one result of a benchmark, that a table needs.

    Attributes:
        values: what sets it apart from the others of its run (`model`, `seed`).
        stage: that makes it; or `benchmark`. words: the overrides of its configuration.
    """

    values: Mapping[str, Any]
    stage: str
    words: tuple[str, ...]
    config: Config

    @cached_property
    def artifact(self) -> Artifact:
        """Its place; perhaps not finished. Raises DataError when the data set or the model is not there."""
        return Artifact(outputs_folder(self.config), self.stage, Keys(self.config).key(self.stage))

    @property
    def finished(self) -> bool:
        """Whether it is there. Raises DataError as `artifact`."""
        if self.stage == BENCHMARK:
            return (results_folder(self.config) / "table.json").is_file()
        return self.artifact.finished


def read_plan(scale: str, words: Sequence[str]) -> dict[str, list[Wanted]]:
    """Every run of a scale, composed.

    Args:
        scale: a file of conf/tables/.
        words: overrides for all of them, after their own: where results go, how work is launched.

    Raises:
        ConfigError: no such scale, or an override that does not fit.
    """
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    plan = load_group("tables", scale)
    ConfigStore.instance().store(name="schema", node=schema())
    GlobalHydra.instance().clear()  # the command's own has done its work
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return {name: list(_combinations(name, run, plan["common"], words)) for name, run in plan["runs"].items()}


def _combinations(
    name: str, run: Mapping[str, Any], common: Sequence[str], typed: Sequence[str]
) -> Iterator[Wanted]:
    """One `Wanted` per combination of the sweep. `own` holds the further words of single models."""
    from hydra import compose

    stage, sweep, own = run["stage"], run.get("sweep", {}), run.get("own", {})
    if stage not in (*STAGES, BENCHMARK):
        raise ConfigError(f"conf/tables: run {name} names a stage {stage!r}; valid: {', '.join(STAGES)}")
    for combination in product(*sweep.values()):
        values = dict(zip(sweep, combination, strict=True))
        swept = [f"{key}={value}" for key, value in values.items()]
        words = (*common, *run.get("with", []), *own.get(values.get("model"), []), *swept, *typed)
        yield Wanted(values, stage, words, to_config(compose(stage, list(words))))
