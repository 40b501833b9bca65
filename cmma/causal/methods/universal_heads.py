"""universal_heads: attention heads that matter in every task and for either corruption (NOTICE).

Golovanevsky et al. 2024. Every head's output is restored on its own, at all positions (or `trace.positions`), and
scored by the recovered share of the logit difference, (LD_patched − LD_corrupt) / (LD_clean − LD_corrupt), as a ratio
of means. A head is important where its |score| is at least mean + 2σ over the heads; it is universal if it is important
in all tasks, for image pairs and for token replacement alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import hypergeom

from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.method_configs import MODALITIES, UniversalHeadsConfig
from cmma.causal.methods.patch_grid import recovery_maps
from cmma.causal.modules import HEADS, trace_rows
from cmma.causal.positions import EVERYTHING, position_groups
from cmma.causal.queries import Contrast, image_pair_contrasts, replacement_contrasts
from cmma.causal.readout import make_readout
from cmma.causal.result import PatchResult
from cmma.causal.tracing import chosen_groups, contrast_cases, restore_cells
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.figures import Figure, HeatMap, Listing
from cmma.models.base import MultimodalModel

NAMES = {"image": "semantic pairs", "text": "token replacement"}


class Overlap(NamedTuple):
    """Universal heads, and how many chance would give: each task's important heads drawn at random, as many of them.

    Attributes:
        universal_H: bool, per head.
        expected: mean number of universal heads over the draws; p: share of draws with at least as many.
    """

    universal_H: np.ndarray
    expected: float
    p: float


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Head scores per task and modality, the important ones, and those that are universal, against chance.

    Raises:
        ConfigError: a model that answers no questions, or a module that is not of single heads.
        DataError: a task without pairs.
    """
    options = config.universal_heads
    if config.module not in HEADS:
        raise ConfigError(f"trace.method=universal_heads restores heads: set trace.module to {' or '.join(HEADS)}")
    if model.kind != "generative":
        raise ConfigError(f"trace.method=universal_heads asks the questions of pairs; {model.spec.name} answers none")
    rows = trace_rows(model, config.stream or model.streams[0], config)
    results = {
        (modality, task): _trace(model, contrasts, config)
        for task in options.tasks
        for modality, contrasts in _halves(samples, task, options.per_task).items()
    }

    cells = {which: result.summary(seed=config.seed) for which, result in results.items()}
    score = {which: table.groupby("row", sort=False)["recovery"].mean() for which, table in cells.items()}
    marks = {which: important(score_H.to_numpy(), options.n_sigmas) for which, score_H in score.items()}
    by_modality = {name: np.stack([marks[name, task] for task in options.tasks]) for name in MODALITIES}
    overlap = universal(by_modality, options.min_tasks or len(options.tasks), options.n_permutations, config.seed)
    heads = list(rows)
    names = {which: np.array(heads)[marks_H] for which, marks_H in marks.items()}
    table = pd.concat([
        each.assign(modality=which[0], task=which[1], important=each["row"].isin(names[which]))
        for which, each in cells.items()
    ], ignore_index=True)  # fmt: skip
    return Findings(
        summary={
            "method": config.method, "module": config.module, "heads": len(heads),
            "universal": [head for head, is_universal in zip(heads, overlap.universal_H, strict=True) if is_universal],
            "universal_by_chance": overlap.expected, "universal_p": overlap.p,
            "modalities": between_modalities(by_modality),
            "n": {f"{modality}, {task}": len(result.images) for (modality, task), result in results.items()},
        },
        tables={"heads": table},
        figures=(*_maps(results, cells), _counts(by_modality, results), _listing(heads, by_modality, overlap, options)),
        tensors={"score_MTH": torch.from_numpy(np.stack(
            [np.stack([score[name, task].to_numpy() for task in options.tasks]) for name in MODALITIES]))},
    )  # fmt: skip


def _halves(samples: Sequence[Sample], task: str, per_task: int) -> dict[str, list[Contrast]]:
    """Pairs of one factor: of every second the image is swapped, of the others a token."""
    own = [sample for sample in samples if sample.meta.get("pair", {}).get("factor") == task]
    ids = list(dict.fromkeys(sample.meta["pair"]["id"] for sample in own))
    if len(ids) < 2:
        raise DataError(f"trace.universal_heads.tasks: there are {len(ids)} pairs of factor {task!r}; take split=pairs")
    half = {pair: place % 2 for place, pair in enumerate(ids)}
    swapped = image_pair_contrasts([sample for sample in own if half[sample.meta["pair"]["id"]] == 0])
    replaced = replacement_contrasts([sample for sample in own if half[sample.meta["pair"]["id"]] == 1])
    return {"image": swapped[:per_task], "text": replaced[:per_task]}


def _trace(model: MultimodalModel, contrasts: Sequence[Contrast], config: TraceConfig) -> PatchResult:
    readout = make_readout(model, config.readout, "logit_difference")
    stream = config.stream or model.streams[0]
    cases = contrast_cases(model, contrasts, readout)
    found = [
        position_groups(model, clean, corrupt, stream, config.image_positions, config.text_positions)
        for clean, corrupt in zip(cases.clean, cases.corrupt, strict=True)
    ]
    groups = chosen_groups(found, config.positions or [EVERYTHING], f"{stream} stream of {model.spec.name}")
    return restore_cells(model, cases, trace_rows(model, stream, config), groups, readout, config)


def important(score_H: np.ndarray, n_sigmas: float) -> np.ndarray:
    """bool [H]: heads whose |score| is at least mean + n_sigmas · σ of |score| over the heads (NOTICE)."""
    size_H = np.abs(score_H)
    return size_H >= size_H.mean() + n_sigmas * size_H.std()


def universal(by_modality: Mapping[str, np.ndarray], min_tasks: int, n_permutations: int, seed: int) -> Overlap:
    """Heads that are important in `min_tasks` tasks of every modality, against random sets of the same sizes.

    Args:
        by_modality: bool [tasks, heads] each.
        n_permutations: draws; p = (b + 1) / (n + 1), b the draws with at least as many universal heads.
    """
    marks_MTH = np.stack(list(by_modality.values()))
    universal_H = (marks_MTH.sum(axis=1) >= min_tasks).all(axis=0)
    rng = np.random.default_rng(seed)
    counts = [
        int((rng.permuted(marks_MTH, axis=2).sum(axis=1) >= min_tasks).all(axis=0).sum()) for _ in range(n_permutations)
    ]
    p = (np.count_nonzero(np.array(counts) >= universal_H.sum()) + 1) / (n_permutations + 1)
    return Overlap(universal_H, float(np.mean(counts)), float(p))


def between_modalities(by_modality: Mapping[str, np.ndarray]) -> dict[str, float | int]:
    """Heads important in any task, per modality, and in both; p of as many in both (hypergeometric)."""
    image_H, text_H = (np.asarray(marks_TH.any(axis=0)) for marks_TH in by_modality.values())
    both = int((image_H & text_H).sum())
    n_image, n_text = int(image_H.sum()), int(text_H.sum())
    p = float(hypergeom.sf(both - 1, len(image_H), n_image, n_text))
    return {"image": n_image, "text": n_text, "both": both, "by_chance": n_image * n_text / len(image_H), "p": p}


def _maps(
    results: Mapping[tuple[str, str], PatchResult], cells: Mapping[tuple[str, str], pd.DataFrame]
) -> list[HeatMap]:
    """Layers × heads of every task and modality."""
    return [
        heat_map
        for which, result in results.items()
        for heat_map in recovery_maps(result, cells[which], f"{which[1]}, {NAMES[which[0]]}")
    ]


def _counts(by_modality: Mapping[str, np.ndarray], results: Mapping[tuple[str, str], PatchResult]) -> HeatMap:
    """In how many tasks each head is important, over both modalities."""
    rows = next(iter(results.values())).rows
    layers = list(dict.fromkeys(row.rsplit(".", 1)[0] for row in rows))
    counts_H = sum(marks_TH.sum(axis=0) for marks_TH in by_modality.values())
    grid = np.asarray(counts_H, dtype=float).reshape(len(layers), -1)
    return HeatMap(
        title="tasks in which a head is important", about="number of tasks, image pairs and token replacement together",
        value_RC=grid, rows=[layer.split(".")[-2] for layer in layers],
        columns=[f"head {head}" for head in range(grid.shape[1])],
    )  # fmt: skip


def _listing(
    heads: Sequence[str], by_modality: Mapping[str, np.ndarray], overlap: Overlap, options: UniversalHeadsConfig
) -> Figure:
    """Heads that are important anywhere, those that are universal first."""
    counts = {modality: marks_TH.sum(axis=0) for modality, marks_TH in by_modality.items()}
    total_H = np.sum(list(counts.values()), axis=0)
    order = sorted(np.flatnonzero(total_H).tolist(), key=lambda head: (-total_H[head], head))
    rows: list[list[Any]] = [
        [heads[head], *(int(counts[name][head]) for name in MODALITIES), "yes" if overlap.universal_H[head] else "no"]
        for head in order
    ]
    return Listing(
        title="important heads",
        about=f"of {len(options.tasks)} tasks; {int(overlap.universal_H.sum())} universal heads, "
        f"{overlap.expected:.3g} expected by chance, p = {overlap.p:.2g}",
        columns=["head", "tasks, image pairs", "tasks, token replacement", "universal"], rows=rows,
    )  # fmt: skip
