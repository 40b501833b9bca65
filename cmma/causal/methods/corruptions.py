"""corruptions: what four ways of corrupting the same samples say, on one scale.

Additive Gaussian noise (ROME; Meng et al. 2022), multiplicative noise (the BLIP tool; Palit et al. 2023), semantic
image pairs and symmetric token replacement (NOTICE; Golovanevsky et al. 2024). Every sample is the clean image of a
pair with the pair's question; the readout, the rows and the position groups are the same in all four, so the maps
differ by the corruption alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from cmma.causal.config import NoiseConfig, TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.modules import HEADS, grid_layer, trace_rows
from cmma.causal.patching import Positions
from cmma.causal.positions import CONSTRAINT, position_groups
from cmma.causal.queries import Contrast, image_pair_contrasts, replacement_contrasts
from cmma.causal.readout import AnswerReadout, make_readout
from cmma.causal.result import PatchResult
from cmma.causal.tracing import Cases, chosen_groups, contrast_cases, noise_cases, restore_cells
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.figures import HeatMap, Listing
from cmma.hooks import Edit
from cmma.models.base import MultimodalModel

ADDITIVE, MULTIPLICATIVE = "additive noise", "multiplicative noise"
PAIR, REPLACEMENT = "semantic pair", "token replacement"
NOISES = {ADDITIVE: ("additive", 3.0), MULTIPLICATIVE: ("multiplicative", 5.0)}
"""Style and scale as published."""

SAID = ("same answer", "other answer", "something else")


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Four maps of recovered effect, their rank correlations, and what the model says under each corruption.

    Raises:
        ConfigError: a model that answers no questions, or single heads.
        DataError: samples without pairs that have a token replacement.
    """
    if model.kind != "generative":
        raise ConfigError(f"trace.method=corruptions asks the questions of pairs, and {model.spec.name} answers none")
    if config.module in HEADS:
        raise ConfigError(f"trace.method=corruptions compares layers × positions, not trace.module={config.module}")
    readout = make_readout(model, config.readout, "logit_difference")
    stream = config.stream or model.streams[0]
    rows = trace_rows(model, stream, config)
    swapped, replaced, right = _paired(samples, config.max_samples)
    cases = {PAIR: contrast_cases(model, swapped, readout), REPLACEMENT: contrast_cases(model, replaced, readout)}
    groups = _groups(model, cases, stream, config, grid_layer(model, stream, rows))
    for name, (style, scale) in NOISES.items():
        noise = NoiseConfig(style, scale, config.noise.draws, config.noise.site)
        same = [Contrast(each.clean, each.clean) for each in swapped]
        cases[name] = noise_cases(model, same, replace(config, noise=noise), readout)

    results = {
        name: restore_cells(model, cases[name], rows, _repeated(groups, len(cases[name].clean)), readout, config)
        for name in (ADDITIVE, MULTIPLICATIVE, PAIR, REPLACEMENT)
    }
    cells = {name: each.summary(seed=config.seed).assign(corruption=name) for name, each in results.items()}
    scores = [each.to_frame().assign(corruption=name) for name, each in results.items()]
    agreement = correlations({name: table["recovery"].to_numpy() for name, table in cells.items()})
    others = {name: [run.query.other for run in cases[name].corrupt] for name in results}
    others[REPLACEMENT] = [right[each.clean.key] for each in swapped]
    said = {name: answers_said(model, cases[name], others[name], results[name].correct_only) for name in results}
    return Findings(
        summary={
            "method": config.method, "module": config.module, "rank_correlation": agreement,
            **{name.replace(" ", "_"): {**results[name].totals(config.seed), "said": said[name]} for name in results},
        },
        tables={
            "trace": pd.concat(list(cells.values()), ignore_index=True), "scores": pd.concat(scores, ignore_index=True),
        },
        figures=(_side_by_side(results, cells), _agreement(agreement, results), _totals(results, said)),
        tensors={f"{name.replace(' ', '_')}_score_CRG": torch.from_numpy(r.score_CRG) for name, r in results.items()},
    )  # fmt: skip


def _paired(samples: Sequence[Sample], n: int) -> tuple[list[Contrast], list[Contrast], dict[str, str]]:
    """The same clean queries, once with another image and once with another token; the right answers to the latter.

    All are scored on the clean query, whose other answer is that of the pair's other image.
    """
    found = {each.clean.key: each for each in replacement_contrasts(samples)}
    swapped = [each for each in image_pair_contrasts(samples) if each.clean.key in found][:n]
    if not swapped:
        raise DataError("trace.method=corruptions needs pairs that also have a token replacement; take split=pairs")
    replaced = [
        Contrast(each.clean, replace(each.clean, text=found[each.clean.key].corrupt.text)) for each in swapped
    ]
    return swapped, replaced, {key: contrast.clean.other for key, contrast in found.items()}


def _groups(
    model: MultimodalModel, cases: Mapping[str, Cases], stream: str, config: TraceConfig, layer: int | None
) -> list[Positions]:
    """Groups of every sample: patches by what the image pair changes, words by what the replacement changes."""
    found = []
    for clean, other, reworded in zip(cases[PAIR].clean, cases[PAIR].corrupt, cases[REPLACEMENT].corrupt, strict=True):
        patches = position_groups(model, clean, other, stream, config.image_positions, "none", layer)
        words = position_groups(model, clean, reworded, stream, "none", CONSTRAINT, layer)
        found.append({**patches, **words})
    return chosen_groups(found, config.positions, f"{stream} stream of {model.spec.name}")


def _repeated(groups: Sequence[Positions], n_cases: int) -> list[Positions]:
    return [each for each in groups for _ in range(n_cases // len(groups))]


def correlations(maps: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Spearman's rank correlation over the cells of every two maps, those that are finite in both."""
    found = {}
    for (name, a), (other, b) in combinations(maps.items(), 2):
        both = np.isfinite(a) & np.isfinite(b)
        found[f"{name} / {other}"] = float(spearmanr(a[both], b[both]).statistic)
    return found


@torch.no_grad()
def answers_said(model: Any, cases: Cases, others: Sequence[str], correct_only: bool) -> dict[str, float]:
    """Shares of corrupt runs whose likeliest first word is the clean answer, the other answer, or neither.

    Args:
        others: the right answer to each corrupt input; for noise, that of the pair's other image.
    """
    said = []
    reader = AnswerReadout(model, "probability")
    for run, other, right in zip(cases.corrupt, others, cases.correct, strict=True):
        if correct_only and not right:
            continue
        with ExitStack() as stack:
            for site, edit in run.edits:
                stack.enter_context(Edit(model, site, edit))
            logits_BCV, _, answer_BC = reader.answer_logits(run.batch, [run.query])
        word = int(logits_BCV[0, int(answer_BC[0].int().argmax())].argmax())
        firsts = [model.answer_ids(answer)[0] for answer in (run.query.answer, other)]
        said.append(firsts.index(word) if word in firsts else 2)
    return {name: said.count(index) / max(1, len(said)) for index, name in enumerate(SAID)}


def _side_by_side(results: Mapping[str, PatchResult], cells: Mapping[str, pd.DataFrame]) -> HeatMap:
    """All four maps in one: the columns of a position group stand side by side, one per corruption."""
    first = next(iter(results.values()))
    columns = [(name, group) for group in first.groups for name in results]

    def grid(column: str) -> np.ndarray:
        wide = {name: table.pivot(index="row", columns="group", values=column) for name, table in cells.items()}
        return np.stack([wide[name][group].loc[list(first.rows)].to_numpy(float) for name, group in columns], axis=1)

    return HeatMap(
        title="four corruptions of the same samples", about=f"recovered share of the {first.readout.replace('_', ' ')}",
        value_RC=grid("recovery"), low_RC=grid("recovery_low"), high_RC=grid("recovery_high"),
        rows=[row.split(".")[-2] for row in first.rows],
        columns=[f"{group}: {name}" for name, group in columns], n=len(first.images),
    )  # fmt: skip


def _agreement(agreement: Mapping[str, float], results: Mapping[str, PatchResult]) -> Listing:
    names = list(results)
    return Listing(
        title="rank correlation of the maps", about="Spearman's ρ over the cells (layer × position group)",
        columns=["corruption", *names[1:]],
        rows=[[name, *(agreement.get(f"{name} / {other}") for other in names[1:])] for name in names[:-1]],
    )  # fmt: skip


def _totals(results: Mapping[str, PatchResult], said: Mapping[str, Mapping[str, float]]) -> Listing:
    rows: list[list[Any]] = []
    for name, result in results.items():
        total = result.total_effect()
        effect = (total.interval.value, total.interval.low, total.interval.high)
        rows.append([name, *effect, total.p, *said[name].values(), len(result.images)])
    return Listing(
        title="what the corruptions do",
        about="total effect on the readout with 95% BCa interval; shares of corrupt runs that say the clean answer, "
        "the answer that is right for the corrupt input (noise: for the pair's other image), or something else",
        columns=["corruption", "total effect", "low", "high", "p", *SAID, "n"], rows=rows,
    )  # fmt: skip
