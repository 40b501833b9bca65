"""The one engine of causal tracing: restore clean activations in a corrupt run, many cells per forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmma.causal.passes import (
    Case,
    Cell,
    Part,
    Run,
    chunks,
    joined_scores,
    run_scores,
    streams_needed,
    whole_scores,
    why_whole,
)
from cmma.causal.readout import Readout
from cmma.causal.result import PatchResult
from cmma.console import progress, warn
from cmma.errors import DataError
from cmma.hooks import Edit, Trace
from cmma.hooks.joined import Prefix, keeping_prefix
from cmma.hooks.resume import AGREE
from cmma.models.base import Batch, MultimodalModel

__all__ = ["Part", "Positions", "Run", "activation_patch", "run_scores"]

Positions = Mapping[str, Tensor | None]
"""Name of a position group → positions in the stream that is patched, int64 [P]; None = all of them."""

CASES_AT_ONCE = 8
"""Cases of equal shapes whose clean and corrupt runs, and cells where a prefix is kept, share passes."""

Sites = Sequence[str | Part]
"""What one row restores together; a plain name stands for all channels of the site."""


@torch.no_grad()
def activation_patch(
    model: MultimodalModel,
    clean: Sequence[Run],
    corrupt: Sequence[Run],
    sites: Mapping[str, Sites] | Sequence[str],
    positions: Sequence[Positions],
    readout: Readout,
    *,
    correct: Sequence[bool] | None = None,
    correct_only: bool = True,
    rows_per_forward: int = 96,
) -> PatchResult:
    """Run each corrupt input once per (row × group), with the clean activations restored there.

    The clean activations of all sites are cached by one forward pass. Cells of one case share forward passes: the
    corrupt batch is repeated, its own edits (the noise) give every copy the same values, and each copy is patched
    at its own sites and positions. So a cell's score does not depend on which cells it shares a pass with.

    What nothing changes is not computed again (`cmma.hooks.joined`): a cell joins its pass at the first layer that it
    restores, from the cached corrupt stream; towers that it cannot reach are given; in a causal stream the positions
    before it are kept as keys and values; and positions at which both runs hold the same, bit for bit, need no
    restoring. That is checked on cells of the first case; where it does not reproduce whole passes, these are run.

    Args:
        clean, corrupt: the cases, one row each, of equal length pairwise.
        sites: what each row of the result restores: names of sites, or row name → sites (or `Part`s of them, such as
            single heads) restored together.
        positions: position groups of each case; a case may lack a group.
        readout: scores of a batch, higher for the clean answer.
        correct: whether the clean run answers right; None if every case counts.
        correct_only: statistics use the correct cases only. Incorrect ones are then not patched at all.

    Raises:
        DataError: no case is left, or a pair whose runs differ in length at a patched site.
        UnknownSite: a site that the model does not have.
    """
    rows = {name: tuple(map(_part, group)) for name, group in _named(sites).items()}
    groups = tuple(dict.fromkeys(name for each in positions for name in each))
    correct_C = np.ones(len(clean), dtype=bool) if correct is None else np.asarray(correct, dtype=bool)
    if not len(clean) or (correct_only and not correct_C.any()):
        raise DataError(f"no case to patch: {len(clean)} cases, {int(correct_C.sum())} answered right when clean")

    score_CRG = np.full((len(clean), len(rows), len(groups)), np.nan)
    low_C, high_C = np.full(len(clean), np.nan), np.full(len(clean), np.nan)
    used = [case for case in range(len(clean)) if correct_C[case] or not correct_only]
    passes = _Passes(model, rows, [corrupt[index] for index in used], readout, rows_per_forward)
    with progress("Patching activations", total=sum(len(rows) * len(positions[index]) for index in used)) as bar:
        for some in passes.together([corrupt[index] for index in used]):
            indices = [used[place] for place in some]
            cells, held = [], False
            while not held:
                cases = passes.cases([clean[index] for index in indices], [corrupt[index] for index in indices])
                cells = [
                    Cell.of(case, row, groups.index(name), parts, where)
                    for case, index in zip(cases, indices, strict=True)
                    for row, parts in enumerate(rows.values())
                    for name, where in positions[index].items()
                ]
                held = passes.hold(cells)
            index_of = dict(zip(cases, indices, strict=True))
            for case, index in index_of.items():
                low_C[index], high_C[index] = case.low, case.high
            for cell, score in passes.scores(cells):
                score_CRG[index_of[cell.case], cell.row, cell.group] = score
            bar.advance(len(cells))

    keys = tuple(run.query.key for run in clean)
    return PatchResult(tuple(rows), groups, keys, score_CRG, low_C, high_C, correct_C, correct_only, readout.name)


class _Passes:
    """The quickest passes that are exact for these rows: decided by what they restore, and checked on the first case.

    Attributes:
        joins: cells join passes at their first layer. prefix: and the positions before them are kept.
    """

    def __init__(
        self, model: MultimodalModel, rows: Mapping[str, tuple[Part, ...]], corrupt: Sequence[Run], readout: Readout,
        size: int,
    ) -> None:  # fmt: skip
        self._model, self._readout, self._size = model, readout, size
        self._sites = tuple(dict.fromkeys(part.site for parts in rows.values() for part in parts))
        reason = why_whole(model, rows, corrupt)
        self.joins, self._checked = not reason, False
        self.prefix = self.joins and self._sites[0].startswith(f"{model.prefix_stream}.")
        self._streams = streams_needed(model, rows) if self.joins else []
        if reason:
            warn(f"{model.spec.name}: {reason}; every cell takes a whole pass")

    def together(self, corrupt: Sequence[Run]) -> list[list[int]]:
        """Which cases are run together: some of equal shapes, so that a batch holds them all without padding."""
        alike: dict[object, list[int]] = defaultdict(list)
        for index, run in enumerate(corrupt):
            alike[tuple((name, value.shape) for name, value in run.batch.items())].append(index)
        size = max(1, min(CASES_AT_ONCE, self._size // 2))
        return [some[start : start + size] for some in alike.values() for start in range(0, len(some), size)]

    def cases(self, clean: Sequence[Run], corrupt: Sequence[Run]) -> list[Case]:
        """What the passes of some cases of equal shapes need."""
        runs = list({id(run): run for run in (*clean, *corrupt)}.values())
        traced: dict[int, _Traced] = {}
        for some in ([run for run in runs if not run.edits], *([run] for run in runs if run.edits)):
            if some:
                traced |= {id(run): found for run, found in zip(some, self._traced(some), strict=True)}
        cases = []
        for one, other in zip(clean, corrupt, strict=True):
            high, low = traced[id(one)], traced[id(other)]
            _check_aligned(one, other, high.acts, low.acts)
            cases.append(Case(other, low.score, high.score, high.acts, low.acts, low.prefix, low.row))
        return cases

    def scores(self, cells: Sequence[Cell]) -> list[tuple[Cell, float]]:
        """Every cell with its score; one that restores nothing is the corrupt run."""
        found = [(cell, cell.case.low) for cell in cells if not len(cell.positions)]
        cells = [cell for cell in cells if len(cell.positions)]
        apart = [cells] if self.prefix else [list(own) for _, own in groupby(cells, key=lambda cell: id(cell.case))]
        for some in apart:
            order = chunks(some, self._size, self.prefix) if self.joins else _slices(some, self._size)
            for chunk in order:
                found += zip(chunk, self._run(chunk).tolist(), strict=True)
        return found

    def _run(self, cells: Sequence[Cell]) -> Tensor:
        if self.joins:
            return joined_scores(self._model, cells, self._readout, self.prefix)
        return whole_scores(self._model, cells, self._readout)

    def hold(self, cells: Sequence[Cell]) -> bool:
        """Whether the passes reproduce whole ones on corner cells of the first case; if not, says so, takes others."""
        cells = [cell for cell in cells if len(cell.positions)]
        cells = [cell for cell in cells if cell.case is cells[0].case]
        if not self.joins or self._checked or not cells:
            return True
        corners = [cells[index] for index in dict.fromkeys((0, _last_of_row(cells, cells[0].row), len(cells) - 1))]
        expected = whole_scores(self._model, corners, self._readout)
        bound = AGREE * max(1.0, float(expected.abs().max()))
        self._checked = float((self._run(corners) - expected).abs().max()) <= bound
        if not self._checked:
            how = "keep the positions before the patch" if self.prefix else "begin at the patched layer"
            warn(f"{self._model.spec.name}: passes that {how} do not reproduce whole ones, so they are not used")
            self.prefix, self.joins = False, self.prefix
        return self._checked

    def _traced(self, runs: Sequence[Run]) -> list[_Traced]:
        """Score, activations [positions, width] at every site, and keys and values, of runs in one pass."""
        sites = (*self._sites, *self._streams)
        batch = Batch.cat([run.batch for run in runs])
        unread = self.prefix and bool(batch.answer_mask[:, -1].all())  # an answer's last token is predicted, not read
        with ExitStack() as stack:
            for site, edit in runs[0].edits:
                stack.enter_context(Edit(self._model, site, edit))
            acts = stack.enter_context(Trace(self._model, sites))
            prefix = stack.enter_context(keeping_prefix(self._model)) if self.prefix else []
            scores = self._readout(batch, [run.query for run in runs]).tolist()
        found = {site: acts[site].reshape(len(runs), -1, acts[site].shape[-1]) for site in acts}
        found = {site: acts_RSD[:, :-1] if unread else acts_RSD for site, acts_RSD in found.items()}
        return [
            _Traced(score, {site: acts_RSD[row] for site, acts_RSD in found.items()}, prefix, row)
            for row, score in enumerate(scores)
        ]


class _Traced(NamedTuple):
    score: float
    acts: Mapping[str, Tensor]
    prefix: Prefix
    row: int


def _last_of_row(cells: Sequence[Cell], row: int) -> int:
    return max(index for index, cell in enumerate(cells) if cell.row == row)


def _slices(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _part(site: str | Part) -> Part:
    return site if isinstance(site, Part) else Part(site)


def _named(sites: Mapping[str, Sites] | Sequence[str]) -> Mapping[str, Sites]:
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
