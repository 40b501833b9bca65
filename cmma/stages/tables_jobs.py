"""Bring the runs behind the tables into being, stage by stage, several at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context

from cmma.artifacts.store import Artifact
from cmma.config import Config
from cmma.console import hide_bars, progress, warn
from cmma.errors import CmmaError
from cmma.stages.benchmark import run as run_benchmark
from cmma.stages.keys import Keys
from cmma.stages.runner import outputs_folder, resolve_device, run_stage
from cmma.stages.sweep import run_sweep
from cmma.stages.table import STAGES
from cmma.stages.tables_plan import BENCHMARK, Wanted

MOST_JOBS = 4
"""By default; every process holds a model and its activations."""

Job = tuple[str, Sequence[tuple[Config, Sequence[str]]]]
"""A stage, and the configurations that one process makes of it, each with what was typed for it."""


def bring(wanted: Sequence[Wanted], at_once: int = 0) -> None:
    """Make what is missing. What fails is said in one line, and the others are made.

    Small models leave most of a machine idle when one stage has all threads, so several run, each in a process of its
    own with its share of them.

    Args:
        wanted: what the tables need; its parents are made first.
        at_once: processes; 0 = one for each core, at most `MOST_JOBS`; one alone where there is a GPU.
    """
    if not wanted:
        return
    config = wanted[0].config
    if config.launch.kind == "torchrun" or resolve_device(config) != "cpu":
        at_once = at_once or 1
    cores = os.cpu_count() or 1
    at_once = at_once or min(cores, MOST_JOBS)
    threads = config.launch.threads or max(1, cores // at_once)
    for label, jobs in _rounds(wanted):
        jobs = [(stage, [(_with_threads(own, threads), words) for own, words in job]) for stage, job in jobs]
        if at_once == 1 or len(jobs) == 1:
            for job in jobs:
                _report(job[0], _make(job))
            continue
        with (
            progress(label, total=len(jobs)) as bar,
            ProcessPoolExecutor(min(at_once, len(jobs)), get_context("spawn"), hide_bars) as pool,
        ):
            running = {pool.submit(_make, job): job[0] for job in jobs}
            for done in as_completed(running):
                _report(running[done], done.result())
                bar.advance()


def _rounds(wanted: Sequence[Wanted]) -> Iterable[tuple[str, list[Job]]]:
    """The jobs of every stage in turn: of those of one round none needs another."""
    missing: dict[str, dict[str, tuple[Config, Sequence[str]]]] = {stage: {} for stage in STAGES}
    for each in wanted:
        if each.stage != BENCHMARK:
            _add(each, missing)
    benchmarks: list[Job] = [
        (BENCHMARK, [(each.config, each.words)]) for each in wanted
        if each.stage == BENCHMARK and not each.finished
    ]
    for stage, some in missing.items():
        jobs: list[Job] = [(stage, [job]) for job in some.values()]
        if stage == "train-sae":  # the longest round, in which benchmarks, that need nothing, go along
            jobs = [*benchmarks, *((stage, group) for group in _one_reading(some.values()))]
        if jobs:
            yield stage, jobs


def _add(each: Wanted, missing: dict[str, dict[str, tuple[Config, Sequence[str]]]]) -> None:
    """Note a run and what it is made from, as far as they are not there."""
    keys = Keys(each.config)
    needed = [(other.stage, other.keys, other.keys.configuration) for other in keys.others(each.stage).values()]
    needed += [(stage, keys, each.config) for stage in (*keys.ancestors(each.stage), each.stage)]
    for stage, own, config in needed:
        key = own.key(stage)
        if key not in missing[stage] and not Artifact(outputs_folder(config), stage, key).finished:
            missing[stage][key] = config, each.words


def _one_reading(jobs: Iterable[tuple[Config, Sequence[str]]]) -> list[list[tuple[Config, Sequence[str]]]]:
    """Dictionaries of one layer of the same activations train together (`cmma.stages.passes`)."""
    found: dict[tuple[str, int], list[tuple[Config, Sequence[str]]]] = {}
    for config, words in jobs:
        found.setdefault((Keys(config).key("cache-activations"), config.sae_layer()), []).append((config, words))
    return list(found.values())


def _with_threads(config: Config, threads: int) -> Config:
    return replace(config, launch=replace(config.launch, threads=threads))


def _make(job: Job) -> str:
    """Do a job, perhaps in a process of its own. Returns what went wrong, in one line."""
    stage, some = job
    try:
        if stage == BENCHMARK:
            run_benchmark(some[0][0])
        elif stage == "train-sae":
            run_sweep(some)
        else:
            run_stage(stage, *some[0])
    except CmmaError as error:
        return str(error)
    return ""


def _report(stage: str, failure: str) -> None:
    if failure:
        warn(f"{stage}: {failure}")
