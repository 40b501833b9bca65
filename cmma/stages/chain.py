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


def not_applicable(stage: str, config: Config) -> str | None:
    """Why a stage cannot mean anything for this model and data; None when it can."""
    shapes, method = config.dataset.kind == "shapes", config.trace.method
    if stage == "trace" and method == "attribution" and config.model.family == "stable_diffusion":
        return "attribution patching follows towers of one width, and a U-Net's blocks differ"
    if method == "attribution":
        method = config.trace.attribution.corruption
    if stage == "trace" and method in ("semantic_pair", "token_replacement") and not shapes:
        return f"trace.method={config.trace.method} needs pairs of images, which only dataset=shapes has"
    if stage == "trace" and method == "token_replacement" and config.model.family == "clip":
        return "token replacement is about questions, and a dual encoder answers none"
    if stage == "trace" and config.trace.method == "semantic_pair" and config.model.family == "stable_diffusion":
        return "a semantic pair swaps the image that is read, and a diffusion model makes its image"
    if stage == "trace" and config.trace.method == "knockout" and config.model.family == "stable_diffusion":
        return "knockout masks the attention of text and image towers, and a diffusion model's takes no mask"
    writes_words = config.model.family in ("llava", "blip")
    if stage == "trace" and config.trace.method == "logit_lens" and not writes_words:
        return f"the logit lens reads states out as words, and {config.model.name} writes none"
    if stage == "mitigate" and (config.model.family in ("clip", "stable_diffusion") or not config.model.prompt):
        return f"there is no hallucination in captions to mitigate where {config.model.name} writes none"
    if stage == "mitigate" and not shapes:
        return "hallucination is told by the objects of the images, which only dataset=shapes knows"
    if stage == "trace" and config.trace.method in ("cross_attention_maps", "prompt_swap"):
        if config.model.family != "stable_diffusion":
            return f"{config.trace.method} is about making images from prompts, which {config.model.name} does not"
        if not shapes:
            return f"{config.trace.method} reads the made images with the scene parser of dataset=shapes"
    if stage == "trace" and config.trace.method in ("head_text", "sparse_concepts") and config.model.family != "clip":
        return f"{config.trace.method} reads the space that the towers of a CLIP share"
    if stage == "control" and not shapes:
        return "control needs scenes whose factors are known, which only dataset=shapes has"
    if stage == "control" and config.model.family in ("clip", "blip"):
        return f"{config.model.name} makes neither images nor captions"
    return None


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
