"""A causal trace from its configuration: build the cases, name the rows and groups, run the engine."""

from __future__ import annotations

from collections.abc import Sequence

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

PORTS = {"residual": "resid_post", "mlp": "mlp_out", "attention": "attn_out"}
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
    cases = _noise_cases(model, contrasts, config) if not pairs else [contrast_runs(model, each) for each in contrasts]
    draws = len(cases) // max(1, len(contrasts))
    groups = [
        position_groups(model, clean, corrupt, stream, config.image_positions, config.text_positions)
        for clean, corrupt in cases
    ]
    return activation_patch(
        model, [clean for clean, _ in cases], [corrupt for _, corrupt in cases], rows, groups, readout,
        correct=[answer for answer in answered for _ in range(draws)],
        correct_only=correct_only, rows_per_forward=config.rows_per_forward,
    )  # fmt: skip


def find_contrasts(model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig) -> list[Contrast]:
    """What is contrasted: for noise a query with itself (one question per sample, kinds in turn)."""
    dual = model.kind == "dual_encoder"
    if config.method == "semantic_pair":
        return caption_pair_contrasts(samples) if dual else image_pair_contrasts(samples)
    if config.method == "token_replacement":
        if dual:
            raise ConfigError(f"trace.method=token_replacement asks questions, and {model.spec.name} is a dual encoder")
        return replacement_contrasts(samples, config.replacement)
    queries: list[Query] = caption_queries(samples) if dual else question_queries(samples, per_sample=1)
    if not queries:
        raise DataError("trace.method=noise needs samples with questions (meta['questions']); this data set has none")
    return [Contrast(query, query) for query in queries]


def trace_rows(model: MultimodalModel, stream: str, config: TraceConfig) -> dict[str, tuple[str, ...]]:
    """Row name → sites restored together: a window of layers around each row's own.

    Raises:
        ConfigError: no such stream or layer in the model.
    """
    port = PORTS[config.module]
    depth = sum(name.startswith(f"{stream}.layers.") and name.endswith(f".{port}") for name in model.site_names())
    if depth == 0:
        raise ConfigError(f"{model.spec.name} has no sites {stream}.layers.*.{port} (trace.stream, trace.module)")
    layers = range(depth) if config.layers is None else config.layers
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise ConfigError(f"trace.layers holds {wrong[0]}; {stream} layers of {model.spec.name} are 0 to {depth - 1}")
    sites = [f"{stream}.layers.{layer}.{port}" for layer in range(depth)]
    return {sites[layer]: tuple(sites[slice(*window(layer, config.window, depth))]) for layer in layers}


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


def _noise_cases(model: MultimodalModel, contrasts: Sequence[Contrast], config: TraceConfig) -> list[tuple[Run, Run]]:
    clean = [single_run(model, contrast.clean) for contrast in contrasts]
    std = embedding_std(model, clean, noise_site(model, config.noise))
    return [(run, corrupt) for run in clean for corrupt in noise_runs(model, run, config.noise, std, config.seed)]
