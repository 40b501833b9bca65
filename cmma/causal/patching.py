"""The one engine of causal tracing: restore clean activations in a corrupt run, many cells per forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout
from cmma.causal.result import PatchResult
from cmma.console import progress, warn
from cmma.errors import DataError
from cmma.hooks import Edit, TokenEdit, Trace, Where
from cmma.hooks.resume import AGREE, BLOCK, inputs_above, other_tops, resumed
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

    Where a row restores one residual stream, the pass starts there, from the cached corrupt stream: nothing below it
    can change. That is checked on the first case; where it does not reproduce the corrupt run, whole passes are run.

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
        raise DataError(f"no case to patch: {len(clean)} cases, {int(correct_C.sum())} answered right when clean")

    score_CRG = np.full((len(clean), len(rows), len(groups)), np.nan)
    low_C, high_C = np.full(len(clean), np.nan), np.full(len(clean), np.nan)
    used = [case for case in range(len(clean)) if correct_C[case] or not correct_only]
    wanted = tuple(dict.fromkeys(site for row in rows.values() for site in row))
    above = tuple(other_tops(model, wanted[0]))
    resumes = resumable(rows, [corrupt[case] for case in used])
    with progress("Patching activations", total=sum(len(rows) * len(positions[case]) for case in used)) as bar:
        for case in used:
            high_C[case], clean_acts = _traced(model, clean[case], wanted, readout)
            low_C[case], corrupt_acts = _traced(model, corrupt[case], (*wanted, *above), readout)
            _check_aligned(clean[case], corrupt[case], clean_acts, corrupt_acts)
            cells = [
                _Cell(row, groups.index(name), row_sites, where)
                for row, row_sites in enumerate(rows.values())
                for name, where in positions[case].items()
            ]
            if resumes and case == used[0]:
                resumes = _resuming_is_exact(model, corrupt[case], wanted, corrupt_acts, readout, low_C[case])
            for chunk in _chunks(cells, rows_per_forward, by_row=resumes):
                run = _resumed_scores if resumes else _patched_scores
                scores = run(model, corrupt[case], chunk, clean_acts, corrupt_acts, readout)
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


def resumable(rows: Mapping[str, Sequence[str]], corrupt: Sequence[Run]) -> bool:
    """Whether every row restores one residual stream, above everything that the corrupt runs edit in its tower."""
    lowest: dict[str, int] = {}
    for sites in rows.values():
        block = BLOCK.match(sites[0])
        if len(sites) > 1 or block is None:
            return False
        lowest[block["tower"]] = min(lowest.get(block["tower"], int(block["layer"])), int(block["layer"]))
    return all(_below(site, lowest) for run in corrupt for site, _ in run.edits)


def _below(edited: str, lowest: Mapping[str, int]) -> bool:
    """Whether an edit at a site is in the stream already where the lowest row of its tower begins."""
    for tower, layer in lowest.items():
        if edited.startswith(tower):
            number, port = edited.removeprefix(tower).split(".", 1)
            return int(number) < layer or (int(number) == layer and port != "resid_post")
    return True


def _resuming_is_exact(
    model: MultimodalModel, corrupt: Run, sites: Sequence[str], corrupt_acts: Mapping[str, Tensor], readout: Readout,
    low: float,
) -> bool:  # fmt: skip
    """Whether passes that start at the corrupt streams score like the corrupt run. Says so where they do not."""
    nothing = torch.empty(0, dtype=torch.long)
    for site in (sites[0], sites[-1]):
        score = _resumed_scores(model, corrupt, [_Cell(0, 0, (site,), nothing)], corrupt_acts, corrupt_acts, readout)
        if abs(float(score) - low) > AGREE * max(1.0, abs(low)):
            warn(f"{model.spec.name}: passes that resume at {site} do not reproduce whole ones, which are run instead")
            return False
    return True


def _resumed_scores(
    model: MultimodalModel, corrupt: Run, cells: Sequence[_Cell], clean_acts: Mapping[str, Tensor],
    corrupt_acts: Mapping[str, Tensor], readout: Readout,
) -> Tensor:  # fmt: skip
    """Scores [cells] of one pass that starts at the cells' common site, row r with cells[r] restored."""
    (site,) = cells[0].sites
    stream_RSD = corrupt_acts[site].repeat(len(cells), 1, 1)
    for row, cell in enumerate(cells):
        stream_RSD[row, cell.positions] = clean_acts[site][cell.positions]
    layer = int(site.split(".")[-2])
    above = inputs_above(model, layer, corrupt.batch).rows([0] * len(cells))
    tops = {name: corrupt_acts[name].expand(len(cells), -1, -1) for name in other_tops(model, site)}
    with resumed(model, {site: stream_RSD, **tops}):
        return run_scores(model, Run(corrupt.query, above, corrupt.edits), readout, len(cells))


def _patched_scores(
    model: MultimodalModel, corrupt: Run, cells: Sequence[_Cell], clean_acts: Mapping[str, Tensor],
    corrupt_acts: Mapping[str, Tensor], readout: Readout,
) -> Tensor:  # fmt: skip
    """Scores [cells] of one whole pass in which row r of the repeated corrupt batch restores cells[r]."""
    chosen: dict[str, Tensor] = {}
    for row, cell in enumerate(cells):
        for site in cell.sites:
            length = clean_acts[site].shape[0]
            chosen.setdefault(site, torch.zeros(len(cells), length, dtype=torch.bool))[row, cell.positions.cpu()] = True
    patches = tuple((site, restore(clean_acts[site], chosen_RS)) for site, chosen_RS in chosen.items())
    repeated = Run(corrupt.query, corrupt.batch.rows([0] * len(cells)), corrupt.edits + patches)
    return run_scores(model, repeated, readout, len(cells))


def _chunks(cells: Sequence[_Cell], size: int, by_row: bool) -> Iterator[Sequence[_Cell]]:
    """Cells that share a pass: `size` at a time, of one row only where the pass starts at the row's site."""
    blocks = [list(block) for _, block in groupby(cells, key=lambda cell: cell.row)] if by_row else [cells]
    for block in blocks:
        for start in range(0, len(block), size):
            yield block[start : start + size]


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


def _check_aligned(
    clean: Run, corrupt: Run, clean_acts: Mapping[str, Tensor], corrupt_acts: Mapping[str, Tensor]
) -> None:
    for site, acts_SD in clean_acts.items():
        if acts_SD.shape != corrupt_acts[site].shape:
            raise DataError(
                f"sample {clean.query.key!r}: {site} has {acts_SD.shape[0]} positions when clean, when corrupt "
                f"{corrupt_acts[site].shape[0]} ({clean.query.text!r} against {corrupt.query.text!r}); "
                "patching needs pairs of equal length"
            )
