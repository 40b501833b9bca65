"""`cmma run`: every stage in order, skipping what is done and saying what does not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cmma.artifacts.store import Artifact
from cmma.config import Config
from cmma.console import format_value, say
from cmma.errors import ConfigError
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
    for stage in STAGES:
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


def not_applicable(stage: str, config: Config) -> str | None:
    """Why a stage cannot mean anything for this model and data; None when it can."""
    shapes = config.dataset.kind == "shapes"
    if stage == "trace" and config.trace.method in _OF_PAIRS and not shapes:
        return f"trace.method={config.trace.method} needs pairs of images, which only dataset=shapes has"
    if stage == "trace" and config.trace.method == "token_replacement" and config.model.family == "clip":
        return "token replacement is about questions, and a dual encoder answers none"
    if stage == "trace" and config.trace.method in _OF_QUESTIONS and config.model.family in _WITHOUT_ANSWERS:
        return f"{config.trace.method} is about questions, and a {config.model.family} model answers none"
    if stage == "trace" and config.trace.method == "semantic_pair" and config.model.family == "stable_diffusion":
        return "a semantic pair swaps the image that is read, and a diffusion model makes its image"
    return None


_OF_QUESTIONS = ("constraint_window", "universal_heads", "corruptions")
_OF_PAIRS = ("semantic_pair", "token_replacement", *_OF_QUESTIONS)
_WITHOUT_ANSWERS = ("clip", "stable_diffusion")

# What the summary prints of each stage: entries of its artifact's summary.
_HEADLINES = {
    "cache-activations": ("samples", "visual", "textual", "joint"),
    "train-sae": ("fvu", "l0_visual", "l0_textual", "dead_fraction"),
    "interpret": ("live", "shares"),
    "trace": ("n_used", "clean", "corrupt", "strongest", "strongest_recovery"),
    "intervene": ("shift", "excess_over_random_features", "excess_over_random_directions"),
    "build-cmig": ("features", "pairs", "significant_excess"),
    "evaluate-sae": ("code_cosine", "modality_share", "recovered"),
    "evaluate": ("metrics",),
}


def print_summary(made: Mapping[str, Artifact]) -> None:
    """The headline numbers of every stage, one line each; `cmma show KEY` has the rest."""
    say("")
    for name, artifact in made.items():
        shown = {key: artifact.summary.get(key) for key in _HEADLINES.get(artifact.stage, ())}
        for key, value in shown.items():
            if isinstance(value, dict):
                shown = {k: v for k, v in shown.items() if k != key} | value
        if shown:
            say(f"{name}: " + ", ".join(f"{key} {format_value(value)}" for key, value in shown.items()))
