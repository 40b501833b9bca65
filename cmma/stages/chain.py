"""`cmma run`: every stage in order, skipping what is done and saying what does not apply."""

from __future__ import annotations

from collections.abc import Sequence

from cmma.config import Config
from cmma.console import say
from cmma.errors import ConfigError
from cmma.stages.runner import run_stage
from cmma.stages.table import STAGES
from cmma.stages.variants import variants


def run_chain(config: Config, overrides: Sequence[str] = ()) -> None:
    """Bring every artifact up to `run.until` into being.

    Raises:
        ConfigError: `run.until` is not a stage.
    """
    if config.run.until not in STAGES:
        raise ConfigError(f"run.until={config.run.until} is not one of {', '.join(STAGES)}")
    for stage in STAGES:
        for name, variant in variants(stage, config, overrides):
            reason = not_applicable(stage, variant)
            if reason:
                say(f"{name} left out: {reason}")
            else:
                run_stage(stage, variant, overrides)
        if stage == config.run.until:
            break


def not_applicable(stage: str, config: Config) -> str | None:
    """Why a stage cannot mean anything for this model and data; None when it can."""
    shapes = config.dataset.kind == "shapes"
    if stage == "trace" and config.trace.method in ("semantic_pair", "token_replacement") and not shapes:
        return f"trace.method={config.trace.method} needs pairs of images, which only dataset=shapes has"
    if stage == "trace" and config.trace.method == "token_replacement" and config.model.family == "clip":
        return "token replacement is about questions, and a dual encoder answers none"
    return None
