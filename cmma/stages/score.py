"""`cmma score`: one metric on files that the user already has; one JSON object on stdout."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import asdict
from typing import Any

from cmma.config import Config, load_group
from cmma.console import say
from cmma.errors import ConfigError
from cmma.evaluation.scoring.config import ScoreConfig
from cmma.evaluation.scoring.job import ScoreJob
from cmma.evaluation.scoring.registry import METRICS
from cmma.models.spec import ModelSpec
from cmma.stages.runner import resolve_device, set_determinism


def run(config: Config) -> dict[str, Any]:
    """Compute the configured metric, print it and return what was printed.

    Raises:
        ConfigError: an input or weights that are not given.
        DataError: nothing in the inputs can be scored.
    """
    options = config.score
    spec = METRICS[options.metric]
    for name, what in (("predictions", spec.predictions), ("references", spec.references)):
        if what and not getattr(options, name):
            raise ConfigError(f"metric={options.metric} needs {name}=PATH: {what}")
    if spec.needs_weights and not options.weights:
        raise ConfigError(f"metric={options.metric} needs metric.weights=FILE; docs/metrics.md says which")
    uses_torch = spec.module in ("distances", "clip_score", "image_pairs", "aesthetic")
    if uses_torch:
        set_determinism(config, world=1)
    job = ScoreJob(options, resolve_device(config) if uses_torch else "cpu", config.seed, encoder_spec(options))
    result = importlib.import_module(f"cmma.evaluation.scoring.{spec.module}").run(job)
    job.problems.announce()
    printed = {"metric": options.metric, **result, "problems": job.problems.as_dict(), "seed": config.seed}
    say(json.dumps(_without_nan(printed), indent=1, ensure_ascii=False, allow_nan=False))
    return printed


def encoder_spec(options: ScoreConfig) -> ModelSpec | None:
    """The dual encoder that the metric uses; None where it uses none."""
    name = options.encoder or METRICS[options.metric].encoder
    if not name:
        return None
    spec = ModelSpec(**load_group("model", name))
    if options.encoder_source:
        spec = ModelSpec(**asdict(spec) | {"weights": "path", "source": options.encoder_source})
    return spec


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: an undefined number is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
