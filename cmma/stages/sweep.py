"""The jobs of a `train-sae` multirun: those that want the same batches train on one pass over the activations."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cmma.config import Config
from cmma.console import say
from cmma.errors import CmmaError
from cmma.stages.keys import Keys
from cmma.stages.runner import Stage, announce, commit, make, open_stage, set_determinism, start


def run_sweep(jobs: Sequence[tuple[Config, Sequence[str]]]) -> None:
    """Bring the dictionary of every job into being, each as its own artifact and with the weights that it has alone.

    Imported dictionaries and those that several processes train are made one after the other.

    Args:
        jobs: validated configuration of each, and what the user typed for it.

    Raises:
        MissingParent: of any job, before work starts. CmmaError: the first job that failed, once all others are done.
    """
    opened = [open_stage("train-sae", config, overrides) for config, overrides in jobs]
    together: dict[str, tuple[Stage, Keys]] = {}
    for stage, keys in opened:
        if stage.artifact.finished or stage.config.imported.source or stage.config.launch.kind == "torchrun":
            make(stage, keys)
        else:
            together[stage.artifact.key] = stage, keys
    if not together:
        return
    from cmma.stages.passes import passes

    failures: list[CmmaError] = []
    for group in passes(stage for stage, _ in together.values()):
        for stage, failure in _train([together[stage.artifact.key] for stage in group]):
            own = [word for word in stage.overrides if any(word not in words for _, words in jobs)]
            failures.append(type(failure)(f"{' '.join(own)}: {failure}"))
    if failures:
        raise failures[0]


def _train(group: Sequence[tuple[Stage, Keys]]) -> list[tuple[Stage, CmmaError]]:
    """Train dictionaries on one pass and commit them. Returns those that failed."""
    from cmma.stages.train_sae import train_dictionaries

    stages, started = [stage for stage, _ in group], time.perf_counter()
    if len(stages) > 1:
        say(f"{len(stages)} dictionaries train on one pass over cache-activations "
            f"{stages[0].parents['cache-activations'].key}")
    for stage in stages:
        start(stage)
    set_determinism(stages[0].config, world=1)
    failures = []
    for (stage, keys), outcome in zip(group, train_dictionaries(stages), strict=True):
        if isinstance(outcome, CmmaError):
            failures.append((stage, outcome))
        else:
            commit(stage, keys, outcome, time.perf_counter() - started)
            announce(stage, "finished")
    return failures
