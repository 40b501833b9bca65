"""attribution: activation patching of every cell at once, to first order, and how far it can be trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from cmma.causal.config import TraceConfig
from cmma.causal.edges import has_edges
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.methods.attribution_edges import edge_findings
from cmma.causal.modules import trace_rows
from cmma.causal.node_attribution import patch_estimates
from cmma.causal.patching import Part, Positions, Run, activation_patch
from cmma.causal.positions import position_groups
from cmma.causal.readout import Readout, make_readout
from cmma.causal.tracing import contrast_cases, find_contrasts, noise_cases
from cmma.console import progress, warn
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.figures import Figure, HeatMap, Listing
from cmma.models.base import MultimodalModel
from cmma.statistics.agreement import rank_correlation, top_recall, with_bounds
from cmma.statistics.bootstrap import bootstrap_columns
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p

Case = tuple[Run, Run, Positions]
"""Clean run, corrupt run, position groups."""
Rows = Mapping[str, str | Part]
"""Name → the site that is restored, or one head of it."""


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """One map of estimates per module; on the first `exact` cases every cell is patched as well.

    Raises:
        ConfigError: a diffusion model, or a window of several layers, whose effects do not add up.
        DataError: samples without what the corruption needs, or pairs of unequal length.
    """
    options = config.attribution
    if model.kind == "diffusion":
        raise ConfigError(f"trace.method=attribution follows towers of one width; {model.spec.name} is a U-Net")
    if config.window != 1:
        raise ConfigError(f"trace.window={config.window}: estimates of layers restored together do not add up; take 1")
    config = replace(config, method=options.corruption)
    noisy = options.corruption == "noise"
    readout = make_readout(model, config.readout, "probability" if noisy else "logit_difference")
    cases = find_cases(model, samples, config, readout)
    groups = tuple(dict.fromkeys(name for *_, positions in cases for name in positions))
    summary: dict[str, Any] = {
        "method": "attribution", "corruption": options.corruption, "readout": readout.name, "steps": options.steps,
        "n_used": len({clean.query.key for clean, *_ in cases}),
    }  # fmt: skip
    cells, agreement, drawn = [], [], []
    for module in options.modules:
        rows = module_rows(model, config, module)
        estimate_CRG = estimate_cells(model, cases, rows, groups, readout, options.steps)
        exact_CRG = patch_cells(model, cases[: options.exact], rows, groups, readout, config.rows_per_forward)
        table = cell_table(cases, rows, groups, estimate_CRG, exact_CRG, config.seed).assign(module=module)
        cells.append(table)
        drawn += maps(table, rows, groups, readout.name, module)
        if len(exact_CRG):
            agreed = compare(cases, estimate_CRG, exact_CRG, options.top, config.seed)
            agreement.append({"module": module, **agreed})
            summary |= {f"{name}_{module}": agreed[name] for name in ("rank_correlation", "recall")}
    stream = config.stream or model.streams[0]
    tables = {"attribution": pd.concat(cells, ignore_index=True)}
    if options.edges and has_edges(model, stream):
        clean, corrupt = [clean for clean, *_ in cases], [corrupt for _, corrupt, _ in cases]
        tables["edges"], agreed, drawn_edges = edge_findings(model, clean, corrupt, stream, readout, config)
        drawn.append(drawn_edges)
        agreement += [{"module": "edges", **agreed}] if agreed else []
        summary |= {f"{name}_edges": agreed[name] for name in ("rank_correlation", "recall") if agreed}
    tables["attribution"] = tables["attribution"].assign(q=benjamini_hochberg(tables["attribution"]["p"]))
    if agreement:
        tables["agreement"] = pd.DataFrame(agreement)
        drawn.append(Listing(
            title="estimates against patching", columns=list(tables["agreement"].columns),
            about=f"Spearman's ρ over cells; recall of the {options.top} largest; {options.steps} step(s), "
                  f"{len(cases[: options.exact])} cases",
            rows=tables["agreement"].to_numpy().tolist(),
        ))  # fmt: skip
    return Findings(summary=summary, tables=tables, figures=tuple(drawn))


def module_rows(model: MultimodalModel, config: TraceConfig, module: str) -> dict[str, str | Part]:
    """Row name → site of a module in every layer of the stream that is patched, or every head of it."""
    rows = trace_rows(model, config.stream or model.streams[0], replace(config, module=module))
    return {name: part for name, (part,) in rows.items()}


def find_cases(model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, readout: Readout) -> list[Case]:
    """Pairs of runs with their position groups; those that are answered right, or all where none is."""
    contrasts = find_contrasts(model, samples, config)[: config.max_samples]
    if config.method == "noise":
        found = noise_cases(model, contrasts, config, readout)
    else:
        found = contrast_cases(model, contrasts, readout)
    pairs = list(zip(found.clean, found.corrupt, strict=True))
    if config.correct_only and not any(found.correct):
        warn(f"{model.spec.name} answers none of {len(pairs)} cases right; all of them are used")
    elif config.correct_only:
        pairs = [pair for pair, answered in zip(pairs, found.correct, strict=True) if answered]
    places = config.stream or model.streams[0], config.image_positions, config.text_positions
    return [(clean, corrupt, position_groups(model, clean, corrupt, *places)) for clean, corrupt in pairs]


def estimate_cells(
    model: MultimodalModel, cases: Sequence[Case], rows: Rows, groups: Sequence[str], readout: Readout,
    steps: int,
) -> np.ndarray:  # fmt: skip
    """`patch_estimates` of every case: float64 [cases, rows, groups], NaN where a case lacks a group."""
    effect_CRG = np.full((len(cases), len(rows), len(groups)), np.nan)
    with progress("Attributing to nodes", total=len(cases)) as bar:
        for case, (clean, corrupt, positions) in enumerate(cases):
            columns = [groups.index(name) for name in positions]
            effect_CRG[case][:, columns] = patch_estimates(model, clean, corrupt, rows, positions, readout, steps)
            bar.advance(1)
    return effect_CRG


def patch_cells(
    model: MultimodalModel, cases: Sequence[Case], rows: Rows, groups: Sequence[str], readout: Readout,
    rows_per_forward: int,
) -> np.ndarray:  # fmt: skip
    """The same, measured: [cases, rows, groups]; no rows without cases."""
    if not cases:
        return np.empty((0, len(rows), len(groups)))
    result = activation_patch(
        model, [clean for clean, *_ in cases], [corrupt for _, corrupt, _ in cases],
        {name: (part,) for name, part in rows.items()}, [positions for *_, positions in cases], readout,
        rows_per_forward=rows_per_forward,
    )  # fmt: skip
    effect_CRG = np.full((len(cases), len(rows), len(groups)), np.nan)
    effect_CRG[:, :, [groups.index(name) for name in result.groups]] = result.score_CRG - result.low_C[:, None, None]
    return effect_CRG


def image_means(cases: Sequence[Case], effect_CRG: np.ndarray) -> np.ndarray:
    """Mean over the cases of each image, [I, cells]."""
    keys = [clean.query.key for clean, *_ in cases[: len(effect_CRG)]]
    flat = pd.DataFrame(effect_CRG.reshape(len(effect_CRG), -1))
    return flat.groupby(np.asarray(keys, dtype=object), sort=False).mean().to_numpy()


def compare(
    cases: Sequence[Case], estimate_CRG: np.ndarray, exact_CRG: np.ndarray, top: int, seed: int = 0
) -> dict[str, float]:
    """Rank correlation over cells, and recall of the largest, on the cases that were patched."""
    estimate_IF, exact_IF = image_means(cases, estimate_CRG[: len(exact_CRG)]), image_means(cases, exact_CRG)
    present_F = np.isfinite(exact_IF).any(axis=0)
    estimate_IF, exact_IF = estimate_IF[:, present_F], exact_IF[:, present_F]
    agreement = rank_correlation(np.nanmean(estimate_IF, axis=0), np.nanmean(exact_IF, axis=0), seed=seed)
    recall = top_recall(estimate_IF, exact_IF, min(top, exact_IF.shape[1]), seed=seed)
    return with_bounds({"rank_correlation": agreement, "recall": recall})


def cell_table(
    cases: Sequence[Case], rows: Rows, groups: Sequence[str], estimate_CRG: np.ndarray,
    exact_CRG: np.ndarray, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """One row per cell: row, group, n, effect (estimated) with its interval and p; exact (patched), n_exact."""
    shape = (-1, len(rows), len(groups))
    estimate_IRG, exact_IRG = (image_means(cases, each).reshape(shape) for each in (estimate_CRG, exact_CRG))
    tables = []
    for column, group in enumerate(groups):
        present_I = np.isfinite(estimate_IRG[:, 0, column])
        effect_IR, exact_IR = estimate_IRG[present_I, :, column], exact_IRG[:, :, column]
        exact_IR = exact_IR[np.isfinite(exact_IR).all(axis=1)]
        found = bootstrap_columns(effect_IR, seed=seed)
        tables.append(pd.DataFrame({
            "row": list(rows), "group": group, "n": len(effect_IR), "effect": found.value,
            "effect_se": found.standard_error, "effect_low": found.low, "effect_high": found.high,
            "p": sign_flip_p(effect_IR, 1000, seed),
            "exact": exact_IR.mean(axis=0) if len(exact_IR) else np.nan, "n_exact": len(exact_IR),
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def maps(
    table: pd.DataFrame, rows: Rows, groups: Sequence[str], readout: str, module: str
) -> list[Figure]:
    """Estimated effects, and the patched ones where there are any, over layers × position groups."""

    def grid(column: str) -> np.ndarray:
        return table.pivot(index="row", columns="group", values=column).loc[list(rows), list(groups)].to_numpy(float)

    layers = [re.sub(r"\D+", " ", name).strip().replace(" ", ".") for name in rows]  # a head is "layer.head"
    about = f"change of the {readout.replace('_', ' ')}"
    drawn: list[Figure] = [HeatMap(
        f"attribution: {module} restored (estimate)", about, grid("effect"), layers, list(groups), grid("effect_low"),
        grid("effect_high"), n=int(table["n"].max()),
    )]  # fmt: skip
    if table["exact"].notna().any():
        drawn.append(HeatMap(
            f"attribution: {module} restored (patched)", about, grid("exact"), layers, list(groups),
            n=int(table["n_exact"].max()),
        ))  # fmt: skip
    return drawn
