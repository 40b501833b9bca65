"""Run one stage: skip it, resume it or do it, here or in elastic workers, and commit its artifact."""

from __future__ import annotations

import importlib
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cmma.artifacts.keys import expand
from cmma.artifacts.store import Artifact
from cmma.config import Config
from cmma.console import say
from cmma.errors import MissingParent
from cmma.stages.keys import Keys, Other
from cmma.stages.publish import publish
from cmma.stages.table import REPORTED, STAGES
from cmma.stages.variants import variants


@dataclass
class Stage:
    """What a stage's `run` gets.

    Attributes:
        name: of the stage.
        config: the whole configuration, validated.
        artifact: the artifact to fill; the runner commits it with the summary that `run` returns.
        parents: finished artifacts of all ancestors (for the report: of all stages that exist), by stage name.
        rank, world: this process among the workers of a parallel stage.
        device: torch device name.
        overrides: what the user typed, for the commands that the report prints.
    """

    name: str
    config: Config
    artifact: Artifact
    parents: dict[str, Artifact]
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    overrides: Sequence[str] = ()


def outputs_folder(config: Config) -> Path:
    """Where artifacts go, as an absolute path."""
    return expand(config.paths.outputs)


def run_stage(name: str, config: Config, overrides: Sequence[str] = ()) -> Artifact:
    """Bring the artifact of a stage into being and return it finished.

    Args:
        name: stage name.
        config: validated configuration.
        overrides: what the user typed, to print the command that makes a missing parent.

    Raises:
        MissingParent: a parent is not finished; the message is the command that makes it.
    """
    return make(*open_stage(name, config, overrides))


def open_stage(name: str, config: Config, overrides: Sequence[str] = ()) -> tuple[Stage, Keys]:
    """A stage with its parents, and the keys of its configuration. Raises MissingParent, as `run_stage`."""
    root = outputs_folder(config)
    keys, parents = open_parents(name, config, root, overrides)
    artifact = Artifact(root, name, keys.key(name))
    device = "" if artifact.finished else resolve_device(config)  # what is done needs no torch
    return Stage(name, config, artifact, parents, device=device, overrides=overrides), keys


def make(stage: Stage, keys: Keys) -> Artifact:
    """Skip a stage or do it, here or in elastic workers; returns its finished artifact."""
    if stage.artifact.finished:
        return announce(stage, "done before")
    start(stage)
    launch = stage.config.launch
    if launch.kind == "torchrun" and STAGES[stage.name].parallel:
        from cmma.launch import launch_workers

        launch_workers(stage.name, stage.artifact.path("resolved.yaml"), launch)
    else:
        execute(stage, keys)
    return announce(stage, "finished")


def start(stage: Stage) -> None:
    """Make the artifact's folder, with the configuration in it."""
    stage.artifact.start(OmegaConf.to_yaml(OmegaConf.structured(stage.config)))


def execute(stage: Stage, keys: Keys) -> None:
    """Do the work of a stage in this process; rank 0 commits."""
    set_determinism(stage.config, stage.world)
    started = time.perf_counter()
    summary = _module(stage.name).run(stage)
    if stage.rank == 0:
        commit(stage, keys, summary, time.perf_counter() - started)


def commit(stage: Stage, keys: Keys, summary: Mapping[str, Any], seconds: float) -> None:
    """Declare the artifact finished."""
    stage.artifact.commit(
        version=STAGES[stage.name].version, config=keys.config(stage.name), parents=keys.parents(stage.name),
        summary=summary, device=stage.device, seconds=seconds,
    )


def open_parents(
    name: str, config: Config, root: Path, overrides: Sequence[str] = ()
) -> tuple[Keys, dict[str, Artifact]]:
    """The keys of a configuration and the finished artifacts that a stage builds on, by stage name.

    The report builds on whatever exists of the stages that it shows.

    Raises:
        MissingParent: a parent is not finished; the message is the command that makes it.
    """
    keys = Keys(config)
    found = {parent: Artifact(root, parent, keys.key(parent)) for parent in keys.ancestors(name)}
    others = keys.others(name)
    found |= {label: Artifact(root, other.stage, other.keys.key(other.stage)) for label, other in others.items()}
    missing = [parent for parent, artifact in found.items() if not artifact.finished]
    if missing:
        commands = " && ".join(dict.fromkeys(command_of(parent, others, overrides) for parent in missing))
        raise MissingParent(f"{name} needs {missing[-1]} {found[missing[-1]].key}, which is not there; run: {commands}")
    if name == "report":
        shown = {
            label: Artifact(root, stage, Keys(variant).key(stage))
            for stage in REPORTED for label, variant in variants(stage, config, overrides, every=True)
        }
        found |= {label: artifact for label, artifact in shown.items() if artifact.finished}
        keys = Keys(config, reported={label: artifact.key for label, artifact in found.items()})
    return keys, found


def command_of(parent: str, others: Mapping[str, Other], overrides: Sequence[str]) -> str:
    """What makes a stage, or one of `others`: the command of its own configuration, with what was typed besides."""
    command = others[parent].command if parent in others else f"cmma {parent}"
    given = {word.split("=")[0].strip("'") for word in command.split()}
    return " ".join([command, *(shlex.quote(word) for word in overrides if word.split("=")[0] not in given)])


def resolve_device(config: Config) -> str:
    """cuda where it is wanted and there, else cpu."""
    if config.launch.device != "auto":
        return config.launch.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def set_determinism(config: Config, world: int) -> None:
    """Seeds and threads: the same configuration gives the same artifact on CPU."""
    import torch

    threads = config.launch.threads or max(1, (os.cpu_count() or 1) // world)
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)


def _module(name: str) -> Any:
    return importlib.import_module(f"cmma.stages.{name.replace('-', '_')}")


def announce(stage: Stage, state: str) -> Artifact:
    """The last line that a stage prints: key and folder of its artifact. Publishes the report."""
    artifact = stage.artifact
    if artifact.stage == "report":
        publish(artifact, outputs_folder(stage.config))
    say(f"{artifact.stage} {artifact.key} {state}: {artifact.folder}")
    return artifact
