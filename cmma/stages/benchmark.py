"""`cmma benchmark`: score methods against known truth, print the table and leave it in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cmma.artifacts.keys import artifact_key
from cmma.benchmark.registry import make_task
from cmma.benchmark.runner import run_benchmark
from cmma.benchmark.table import print_results, write_results
from cmma.config import Config
from cmma.console import say
from cmma.stages.runner import outputs_folder, set_determinism

_VERSION = 1  # raised when the meaning of a task or of a metric changes


def run(config: Config) -> Path:
    """Run the configured benchmark anew and return the folder of its table: one folder per configuration and seed.

    Raises:
        ConfigError: a task or a method that is not there.
    """
    set_determinism(config, world=1)
    results = run_benchmark(config.benchmark, config.seed, config.model)
    folder = results_folder(config)
    write_results(results, folder)
    print_results(results)
    say(f"benchmark {folder.name} finished: {folder}")
    return folder


def results_folder(config: Config) -> Path:
    """Where the table of a configuration lies, or would. Raises ConfigError for a task that is not there."""
    model = config.model.name if make_task(config.benchmark, config.model).uses_model else ""
    content = asdict(config.benchmark) | {"seed": config.seed, "model": model}
    key = artifact_key("benchmark", _VERSION, content, {})
    return outputs_folder(config) / "benchmark" / config.benchmark.task / key
