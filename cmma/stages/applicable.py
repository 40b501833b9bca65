"""What means nothing for a model and data set, and why: `cmma run` says it in one line and goes on."""

from __future__ import annotations

from cmma.config import Config

_OF_QUESTIONS = ("constraint_window", "universal_heads", "corruptions", "factor_swap")
_OF_PAIRS = ("semantic_pair", "token_replacement", *_OF_QUESTIONS)
_OF_MADE_IMAGES = ("cross_attention_maps", "prompt_swap")
_OF_CLIP = ("head_text", "sparse_concepts")


def not_applicable(stage: str, config: Config) -> str | None:
    """Why a stage cannot mean anything for this model and data; None when it can."""
    find = {"trace": _trace, "mitigate": _mitigate, "control": _control, "baselines": _mitigate}.get(stage)
    return find(config) if find else None


def _trace(config: Config) -> str | None:
    shapes, method, family = config.dataset.kind == "shapes", config.trace.method, config.model.family
    if method == "attribution":
        if family == "stable_diffusion":
            return "attribution patching follows towers of one width, and a U-Net's blocks differ"
        method = config.trace.attribution.corruption
    if method in _OF_PAIRS and not shapes:
        return f"trace.method={method} needs pairs of images, which only dataset=shapes has"
    if method == "token_replacement" and family == "clip":
        return "token replacement is about questions, and a dual encoder answers none"
    if method in _OF_QUESTIONS and family in ("clip", "stable_diffusion"):
        return f"{method} is about questions, and {config.model.name} answers none"
    if method == "semantic_pair" and family == "stable_diffusion":
        return "a semantic pair swaps the image that is read, and a diffusion model makes its image"
    if method == "knockout" and family == "stable_diffusion":
        return "knockout masks the attention of text and image towers, and a diffusion model's takes no mask"
    if method == "logit_lens" and family not in ("llava", "blip"):
        return f"the logit lens reads states out as words, and {config.model.name} writes none"
    if method in _OF_MADE_IMAGES and family != "stable_diffusion":
        return f"{method} is about making images from prompts, which {config.model.name} does not"
    if method in _OF_MADE_IMAGES and not shapes:
        return f"{method} reads the made images with the scene parser of dataset=shapes"
    if method in _OF_CLIP and family != "clip":
        return f"{method} reads the space that the towers of a CLIP share"
    return None


def _mitigate(config: Config) -> str | None:
    if config.model.family in ("clip", "stable_diffusion") or not config.model.prompt:
        return f"there is no hallucination in captions to mitigate where {config.model.name} writes none"
    if config.dataset.kind != "shapes":
        return "hallucination is told by the objects of the images, which only dataset=shapes knows"
    return None


def _control(config: Config) -> str | None:
    if config.dataset.kind != "shapes":
        return "control needs scenes whose factors are known, which only dataset=shapes has"
    if config.model.family in ("clip", "blip"):
        return f"{config.model.name} makes neither images nor captions"
    return None
