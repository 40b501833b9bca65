"""A causal trace from its configuration: build the cases, name the rows and groups, run the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cmma.causal.config import TraceConfig
from cmma.causal.corruptions import contrast_runs, embedding_std, noise_runs, noise_site, single_run
from cmma.causal.modules import HEADS, grid_layer, trace_rows
from cmma.causal.patching import Positions, Run, Sites, activation_patch
from cmma.causal.positions import EVERYTHING, position_groups
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

CHECKED_AT_ONCE = 64


@dataclass(frozen=True)
class Cases:
    """Clean and corrupt runs, pairwise, and whether the model answers each clean one right."""

    clean: list[Run]
    corrupt: list[Run]
    correct: list[bool]


def trace(model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig) -> PatchResult:
    """Causal trace of a module over layers (and heads) × position groups.

    Args:
        samples: images with questions (noise) or pairs (`semantic_pair`, `token_replacement`); for a dual encoder their
            captions are the text.

    A model that answers nothing right (random weights) is traced on all cases, with a warning.

    Raises:
        DataError: samples without what the method needs, or pairs of unequal length.
        ConfigError: a stream, layer, module, position group or readout that the model does not have.
    """
    readout = make_readout(model, config.readout, "probability" if config.method == "noise" else "logit_difference")
    contrasts = find_contrasts(model, samples, config)[: config.max_samples]
    stream = config.stream or model.streams[0]
    rows = trace_rows(model, stream, config)
    if config.method == "noise":
        cases = noise_cases(model, contrasts, config, readout)
    else:
        cases = contrast_cases(model, contrasts, readout)
    layer = grid_layer(model, stream, rows)
    found = [
        position_groups(model, clean, corrupt, stream, config.image_positions, config.text_positions, layer)
        for clean, corrupt in zip(cases.clean, cases.corrupt, strict=True)
    ]
    wanted = config.positions or ([EVERYTHING] if config.module in HEADS else [])
    groups = chosen_groups(found, wanted, f"{stream} stream of {model.spec.name}")
    return restore_cells(model, cases, rows, groups, readout, config)


def restore_cells(
    model: MultimodalModel, cases: Cases, rows: Mapping[str, Sites], groups: Sequence[Positions], readout: Readout,
    config: TraceConfig,
) -> PatchResult:  # fmt: skip
    """`activation_patch` of the cases, of those that are answered right where the configuration says so and any is.

    A corruption that does nothing is said: there is nothing to recover then, and recovery is noise.
    """
    correct_only = config.correct_only and any(cases.correct)
    if config.correct_only and not correct_only:
        warn(
            f"{model.spec.name} answers none of {len(cases.correct)} cases right; the trace takes all of them, so it "
            "shows where the readout comes from and not where a right answer does"
        )
    result = activation_patch(
        model, cases.clean, cases.corrupt, rows, groups, readout, correct=cases.correct, correct_only=correct_only,
        rows_per_forward=config.rows_per_forward,
    )  # fmt: skip
    total = result.total_effect(seed=config.seed)
    if not total.corrupts:
        warn(f"{model.spec.name}: {total}; recovered shares mean little, take a stronger corruption or more samples")
    return result


def contrast_cases(model: MultimodalModel, contrasts: Sequence[Contrast], readout: Readout) -> Cases:
    """Cases of pairs. Raises DataError for a pair of unequal length."""
    runs = [contrast_runs(model, each) for each in contrasts]
    correct = correct_queries(model, [each.clean for each in contrasts], readout)
    return Cases([clean for clean, _ in runs], [corrupt for _, corrupt in runs], correct)


def noise_cases(
    model: MultimodalModel, contrasts: Sequence[Contrast], config: TraceConfig, readout: Readout
) -> Cases:
    """Cases of Gaussian noise on the clean queries' images: `config.noise.draws` of each."""
    clean = [single_run(model, contrast.clean) for contrast in contrasts]
    correct = correct_queries(model, [each.clean for each in contrasts], readout)
    std = embedding_std(model, clean, noise_site(model, config.noise))
    corrupt = [noise_runs(model, run, config.noise, std, config.seed) for run in clean]
    return Cases(
        [run for run, draws in zip(clean, corrupt, strict=True) for _ in draws],
        [run for draws in corrupt for run in draws],
        [answer for answer, draws in zip(correct, corrupt, strict=True) for _ in draws],
    )  # fmt: skip


def chosen_groups(found: Sequence[Positions], wanted: Sequence[str], where: str) -> list[Positions]:
    """Of each case's groups those that are wanted, or all; `everything` is every position together.

    Raises:
        ConfigError: a group that no case has.
    """
    known = list(dict.fromkeys(name for groups in found for name in groups))
    if absent := [name for name in wanted if name not in (*known, EVERYTHING)]:
        raise ConfigError(
            f"trace.positions: the {where} has no position group {absent[0]!r}; there are {', '.join(known)} and "
            f"{EVERYTHING}"
        )
    if not wanted:
        return list(found)
    offered = [{**groups, EVERYTHING: None} for groups in found]
    return [{name: groups[name] for name in wanted if name in groups} for groups in offered]


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
