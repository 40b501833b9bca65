"""The one engine of causal tracing: restore clean activations in a corrupt run, cell by cell, many cells per forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout
from cmma.causal.result import PatchResult
from cmma.console import progress
from cmma.errors import DataError
from cmma.hooks.edit import Edit, TokenEdit, Where
from cmma.hooks.trace import Trace
from cmma.models.base import Batch, MultimodalModel

Positions = Mapping[str, Tensor]
"""Name of a position group → positions in the stream that is patched, int64 [P]."""


@dataclass(frozen=True)
class Run:
    """One input of the model: a collated batch of a single row, with the edits in force while it runs.

    Attributes:
        query: what is asked, and what the readout measures.
        batch: what `model.collate` made of it; every tensor's leading dimension is the row.
        edits: (site, edit) pairs, applied in this order and before any patch.
    """

    query: Query
    batch: Batch
    edits: tuple[tuple[str, TokenEdit], ...] = ()


@dataclass(frozen=True)
class _Cell:
    """What one row of a patched batch restores."""

    row: int
    group: int
    sites: tuple[str, ...]
    positions: Tensor


@torch.no_grad()
def activation_patch(
    model: MultimodalModel,
    clean: Sequence[Run],
    corrupt: Sequence[Run],
    sites: Mapping[str, Sequence[str]] | Sequence[str],
    positions: Sequence[Positions],
    readout: Readout,
    *,
    correct: Sequence[bool] | None = None,
    correct_only: bool = True,
    rows_per_forward: int = 64,
) -> PatchResult:
    """Run each corrupt input once per (row × group), with the clean activations restored there.

    The clean activations of all sites are cached by one forward pass. Cells of one case share forward passes: the
    corrupt batch is repeated, its own edits (the noise) give every copy the same values, and each copy is patched
    at its own sites and positions. So a cell's score does not depend on which cells it shares a pass with.

    Args:
        clean, corrupt: the cases, one row each, of equal length pairwise.
        sites: what each row of the result restores: names of sites, or row name → sites restored together.
        positions: position groups of each case; a case may lack a group.
        readout: scores of a batch, higher for the clean answer.
        correct: whether the clean run answers right; None if every case counts.
        correct_only: statistics use the correct cases only. Incorrect ones are then not patched at all.

    Raises:
        DataError: no case is left, or a pair whose runs differ in length at a patched site.
    """
    rows = {name: tuple(group) for name, group in _named(sites).items()}
    groups = tuple(dict.fromkeys(name for each in positions for name in each))
    correct_C = np.ones(len(clean), dtype=bool) if correct is None else np.asarray(correct, dtype=bool)
    if not len(clean) or (correct_only and not correct_C.any()):
        raise DataError(f"no case to patch: {len(clean)} cases, {int(correct_C.sum())} of them answered right when clean")

    score_CRG = np.full((len(clean), len(rows), len(groups)), np.nan)
    low_C, high_C = np.full(len(clean), np.nan), np.full(len(clean), np.nan)
    used = [case for case in range(len(clean)) if correct_C[case] or not correct_only]
    with progress("Patching activations", total=sum(len(rows) * len(positions[case]) for case in used)) as bar:
        for case in used:
            wanted = tuple(dict.fromkeys(site for row in rows.values() for site in row))
            high_C[case], clean_acts = _traced(model, clean[case], wanted, readout)
            low_C[case], corrupt_acts = _traced(model, corrupt[case], wanted, readout)
            _check_aligned(clean[case], corrupt[case], clean_acts, corrupt_acts)
            cells = [
                _Cell(row, groups.index(name), row_sites, where)
                for row, row_sites in enumerate(rows.values())
                for name, where in positions[case].items()
            ]
            remaining = iter(cells)
            while chunk := list(islice(remaining, rows_per_forward)):
                scores = _patched_scores(model, corrupt[case], chunk, clean_acts, readout)
                for cell, score in zip(chunk, scores.tolist(), strict=True):
                    score_CRG[case, cell.row, cell.group] = score
                bar.advance(len(chunk))

    keys = tuple(run.query.key for run in clean)
    return PatchResult(tuple(rows), groups, keys, score_CRG, low_C, high_C, correct_C, correct_only, readout.name)


@torch.no_grad()
def run_scores(model: MultimodalModel, run: Run, readout: Readout, rows: int = 1) -> Tensor:
    """Readout of a run as it is, [rows]."""
    with ExitStack() as stack:
        for site, edit in run.edits:
            stack.enter_context(Edit(model, site, edit))
        return readout(run.batch, [run.query] * rows)


def restore(clean_SD: Tensor, chosen_RS: Tensor) -> TokenEdit:
    """An edit that puts clean activations back at the chosen positions of each row.

    Args:
        clean_SD: the clean run's activations at the site.
        chosen_RS: bool, which positions of which row of the batch are restored.
    """

    def put_back(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        chosen_N = chosen_RS.to(acts_ND.device)[where.batch_index, where.position]
        return torch.where(chosen_N[:, None], clean_SD.to(acts_ND)[where.position], acts_ND)

    return TokenEdit(put_back, tokens="every", phase="prefill")


def _patched_scores(
    model: MultimodalModel, corrupt: Run, cells: Sequence[_Cell], clean_acts: Mapping[str, Tensor], readout: Readout
) -> Tensor:
    """Scores [cells] of one forward pass in which row r of the repeated corrupt batch restores cells[r]."""
    chosen: dict[str, Tensor] = {}
    for row, cell in enumerate(cells):
        for site in cell.sites:
            length = clean_acts[site].shape[0]
            chosen.setdefault(site, torch.zeros(len(cells), length, dtype=torch.bool))[row, cell.positions.cpu()] = True
    patches = tuple((site, restore(clean_acts[site], chosen_RS)) for site, chosen_RS in chosen.items())
    repeated = Run(corrupt.query, corrupt.batch.rows([0] * len(cells)), corrupt.edits + patches)
    return run_scores(model, repeated, readout, len(cells))


def _traced(
    model: MultimodalModel, run: Run, sites: Sequence[str], readout: Readout
) -> tuple[float, dict[str, Tensor]]:
    """Score of a single-row run and its activations [positions, width] at every site."""
    with ExitStack() as stack:
        for site, edit in run.edits:
            stack.enter_context(Edit(model, site, edit))
        acts = stack.enter_context(Trace(model, list(sites)))
        score = float(readout(run.batch, [run.query]))
        return score, {site: acts[site].flatten(0, -2) for site in sites}


def _named(sites: Mapping[str, Sequence[str]] | Sequence[str]) -> Mapping[str, Sequence[str]]:
    return sites if isinstance(sites, Mapping) else {site: (site,) for site in sites}


def _check_aligned(clean: Run, corrupt: Run, clean_acts: Mapping[str, Tensor], corrupt_acts: Mapping[str, Tensor]) -> None:
    for site, acts_SD in clean_acts.items():
        if acts_SD.shape != corrupt_acts[site].shape:
            raise DataError(
                f"sample {clean.query.key!r}: the clean run has {acts_SD.shape[0]} positions at {site} and the corrupt run "
                f"{corrupt_acts[site].shape[0]} ({clean.query.text!r} against {corrupt.query.text!r}); "
                "patching needs pairs of equal length"
            )
