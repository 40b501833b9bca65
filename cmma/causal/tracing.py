"""A causal trace from its configuration: build the cases, name the rows and groups, run the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from cmma.causal.config import TraceConfig
from cmma.causal.corruptions import contrast_runs, embedding_std, noise_runs, noise_site, single_run
from cmma.causal.patching import Run, activation_patch
from cmma.causal.positions import position_groups
from cmma.causal.queries import (
    Contrast,
    Query,
    caption_pair_contrasts,
    caption_queries,
    caption_replacement_contrasts,
    image_pair_contrasts,
    question_queries,
    replacement_contrasts,
)
from cmma.causal.readout import Readout, batches, make_readout
from cmma.causal.result import PatchResult
from cmma.console import warn
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.models.base import MultimodalModel

PORTS = {"residual": ("resid_post",), "mlp": ("mlp_out",), "attention": ("attn_out", "attn2_out")}
"""Module → last part of its site's name; of the two attentions of a U-Net's block, the one that reads the text."""
CHECKED_AT_ONCE = 64


def trace(model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig) -> PatchResult:
    """Residual-stream (or MLP, or attention) causal trace over layers × position groups.

    Args:
        samples: images with questions (noise) or pairs (`semantic_pair`, `token_replacement`); for a dual encoder their
            captions are the text.

    A model that answers nothing right (random weights) is traced on all cases, with a warning.

    Raises:
        DataError: samples without what the method needs, or pairs of unequal length.
        ConfigError: a stream, layer, site or readout that the model does not have.
    """
    pairs = config.method != "noise"
    readout = make_readout(model, config.readout, "logit_difference" if pairs else "probability")
    contrasts = find_contrasts(model, samples, config)[: config.max_samples]
    stream = config.stream or model.streams[0]
    rows = trace_rows(model, stream, config)

    answered = correct_queries(model, [each.clean for each in contrasts], readout)
    correct_only = config.correct_only and any(answered)
    if config.correct_only and not correct_only:
        warn(
            f"{model.spec.name} answers none of {len(answered)} cases right; the trace takes all of them, so it shows "
            "where the readout comes from and not where a right answer does"
        )
    cases = noise_cases(model, contrasts, config) if not pairs else [contrast_runs(model, each) for each in contrasts]
    draws = len(cases) // max(1, len(contrasts))
    layer = grid_layer(model, stream, rows)
    groups = [
        position_groups(model, clean, corrupt, stream, config.image_positions, config.text_positions, layer)
        for clean, corrupt in cases
    ]
    return activation_patch(
        model, [clean for clean, _ in cases], [corrupt for _, corrupt in cases], rows, groups, readout,
        correct=[answer for answer in answered for _ in range(draws)],
        correct_only=correct_only, rows_per_forward=config.rows_per_forward,
    )  # fmt: skip


def find_contrasts(model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig) -> list[Contrast]:
    """What is contrasted: for noise a query with itself (one question per sample, kinds in turn)."""
    asks = model.kind == "generative"
    if config.method == "semantic_pair":
        if model.kind == "diffusion":
            raise ConfigError(f"trace.method=semantic_pair swaps the image read, and {model.spec.name} makes one")
        return image_pair_contrasts(samples) if asks else caption_pair_contrasts(samples)
    if config.method == "token_replacement":
        if model.kind == "diffusion":
            if config.replacement != "pair":
                raise ConfigError(f"trace.replacement={config.replacement} is about questions; take pair")
            return caption_replacement_contrasts(samples, lambda text: len(model.tokenizer(text)["input_ids"]))
        if not asks:
            raise ConfigError(f"trace.method=token_replacement asks questions, and {model.spec.name} is a dual encoder")
        return replacement_contrasts(samples, config.replacement)
    queries: list[Query] = question_queries(samples, per_sample=1) if asks else caption_queries(samples)
    if not queries:
        raise DataError("trace.method=noise needs samples with questions (meta['questions']); this data set has none")
    return [Contrast(query, query) for query in queries]


def trace_rows(model: MultimodalModel, stream: str, config: TraceConfig) -> dict[str, tuple[str, ...]]:
    """Row name → sites restored together: a window of layers around each row's own.

    Raises:
        ConfigError: no such stream or layer in the model.
    """
    ports = "|".join(PORTS[config.module])
    numbered = re.compile(rf"{stream}\.(layers|blocks)\.\d+\.({ports})")
    sites = [name for name in model.site_names() if numbered.fullmatch(name)]
    if not sites:
        raise ConfigError(f"{model.spec.name} has no sites {stream}.layers.*.{ports} (trace.stream, trace.module)")
    sites.sort(key=lambda name: int(name.split(".")[-2]))
    depth = len(sites)
    layers = range(depth) if config.layers is None else config.layers
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise ConfigError(f"trace.layers holds {wrong[0]}; {stream} layers of {model.spec.name} are 0 to {depth - 1}")
    return {sites[layer]: tuple(sites[slice(*window(layer, config.window, depth))]) for layer in layers}


def grid_layer(model: MultimodalModel, stream: str, rows: Mapping[str, Sequence[str]]) -> int | None:
    """A layer that stands for the grid of all rows; None in streams whose layers all have one.

    Raises:
        ConfigError: the U-Net's blocks of these rows have maps of different sizes, so that their patches do not match.
    """
    if stream != "unet":
        return None
    layers = sorted({int(site.split(".")[-2]) for sites in rows.values() for site in sites})
    sizes = {layer: model.image_grid({}, layer)[0] for layer in layers}
    if len(set(sizes.values())) > 1:
        alike = [layer for layer, size in sizes.items() if size == max(sizes.values())]
        raise ConfigError(
            f"blocks {layers[0]} to {layers[-1]} of {model.spec.name} have maps of different sizes; set "
            f"trace.layers to blocks of one size, for example {alike}"
        )
    return layers[0]


def window(centre: int, width: int, depth: int) -> tuple[int, int]:
    """First and last + 1 of `width` layers around `centre`, cut off at the ends (ROME's convention)."""
    return max(0, centre - width // 2), min(depth, centre - width // 2 + width)


@torch.no_grad()
def correct_queries(model: MultimodalModel, queries: Sequence[Query], readout: Readout) -> list[bool]:
    """Whether the model answers each query right on its clean image."""
    found: list[bool] = []
    for batch, some in batches(model, queries, CHECKED_AT_ONCE):
        found += readout.correct(batch, some).tolist()
    return found


def answered_right(
    model: MultimodalModel, queries: Sequence[Query], readout: Readout, correct_only: bool = True
) -> list[Query]:
    """The queries that the model answers right; all of them, with a warning, where it answers none."""
    right = [q for q, answer in zip(queries, correct_queries(model, queries, readout), strict=True) if answer]
    if correct_only and queries and not right:
        warn(f"{model.spec.name} answers none of {len(queries)} cases right; all of them are used")
    return right if correct_only and right else list(queries)


def noise_cases(model: MultimodalModel, contrasts: Sequence[Contrast], config: TraceConfig) -> list[tuple[Run, Run]]:
    clean = [single_run(model, contrast.clean) for contrast in contrasts]
    std = embedding_std(model, clean, noise_site(model, config.noise))
    return [(run, corrupt) for run in clean for corrupt in noise_runs(model, run, config.noise, std, config.seed)]
