"""`cmma run`: every stage in order, skipping what is done and saying what does not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cmma.artifacts.store import Artifact
from cmma.config import Config
from cmma.console import format_value, say
from cmma.errors import ConfigError
from cmma.stages.applicable import not_applicable
from cmma.stages.runner import outputs_folder, run_stage
from cmma.stages.table import STAGES
from cmma.stages.variants import variants


def run_chain(config: Config, overrides: Sequence[str] = ()) -> None:
    """Bring every artifact up to `run.until` into being.

    Raises:
        ConfigError: `run.until` is not a stage.
    """
    if config.run.until not in STAGES:
        raise ConfigError(f"run.until={config.run.until} is not one of {', '.join(STAGES)}")
    made: dict[str, Artifact] = {}
    for stage, spec in STAGES.items():
        if not spec.chained and stage != config.run.until:
            continue
        for name, variant in variants(stage, config, overrides):
            reason = not_applicable(stage, variant)
            if reason:
                say(f"{name} left out: {reason}")
            else:
                made[name] = run_stage(stage, variant, overrides)
        if stage == config.run.until:
            break
    print_summary(made)
    if "report" in made:
        say(f"report: {outputs_folder(config) / 'report' / 'index.html'}")


# What the summary prints of each stage: entries of its artifact's summary.
_HEADLINES = {
    "cache-activations": ("samples", "visual", "textual", "joint"),
    "train-sae": ("fvu", "l0_visual", "l0_textual", "dead_fraction"),
    "interpret": ("live", "shares"),
    "trace": ("n_used", "clean", "corrupt", "strongest", "strongest_recovery"),
    "intervene": ("shift", "excess_over_random_features", "excess_over_random_directions"),
    "mitigate": ("strength", "object_change", "reversed_object_change", "control_object_change"),
    "control": ("n_right", "success", "precision"),
    "build-cmig": ("features", "pairs", "significant_excess"),
    "evaluate-sae": ("code_cosine", "modality_share", "recovered"),
    "evaluate": ("metrics",),
}


def print_summary(made: Mapping[str, Artifact]) -> None:
    """The headline numbers of every stage, one line each; `cmma show KEY` has the rest."""
    say("")
    for name, artifact in made.items():
        shown = {key: artifact.summary[key] for key in _HEADLINES.get(artifact.stage, ()) if key in artifact.summary}
        for key, value in shown.items():
            if isinstance(value, dict):
                shown = {k: v for k, v in shown.items() if k != key} | value
        if shown:
            say(f"{name}: " + ", ".join(f"{key} {format_value(value)}" for key, value in shown.items()))
