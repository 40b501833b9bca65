"""How the cells of a trace are computed: whole patched passes, or passes that begin where the first cell differs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout
from cmma.hooks import Edit, TokenEdit, Where
from cmma.hooks.joined import Prefix, entering, joined
from cmma.hooks.resume import inputs_above, other_tops, resumed
from cmma.models.base import Batch, MultimodalModel

_NUMBERED = re.compile(r"(?P<tower>(?P<stream>\w+)\.layers\.)(?P<layer>\d+)\.(?P<port>\w+)")


class Part(NamedTuple):
    """Channels `start` to `stop` of a site, such as one head of what the site `heads` holds; all of them by default."""

    site: str
    start: int | None = None
    stop: int | None = None

    @property
    def channels(self) -> slice:
        """Index of the channels."""
        return slice(self.start, self.stop)


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


@dataclass(frozen=True, eq=False)
class Case:
    """A corrupt run and what its passes need.

    Attributes:
        low, high: readout of the corrupt and of the clean run.
        clean_acts, corrupt_acts: site → activations [S, D] of the two runs, at the positions that the readout reads.
        prefix: keys and values at all positions of the pass that traced the corrupt run, where a prefix of them may be
            kept. Cases that were traced together share it.
        prefix_row: the corrupt run's row of it.
    """

    corrupt: Run
    low: float
    high: float
    clean_acts: Mapping[str, Tensor]
    corrupt_acts: Mapping[str, Tensor]
    prefix: Prefix = field(default_factory=list)
    prefix_row: int = 0
    _differs: dict[Part, list[bool]] = field(default_factory=dict)

    def differs(self, part: Part) -> list[bool]:
        """[S]: positions at which the two runs do not hold the same there, bit for bit."""
        if part not in self._differs:
            clean_SD, corrupt_SD = (acts[part.site][:, part.channels] for acts in (self.clean_acts, self.corrupt_acts))
            self._differs[part] = (clean_SD != corrupt_SD).any(dim=1).tolist()
        return self._differs[part]


@dataclass(frozen=True, eq=False)
class Cell:
    """What one row of a patched batch restores: parts of one tower at some positions.

    Attributes:
        row, group: its place in the result of the case.
        positions: int64 [P], on the CPU. first: the first of them; 0 if there is none.
    """

    case: Case
    row: int
    group: int
    parts: tuple[Part, ...]
    positions: Tensor
    first: int

    @classmethod
    def of(cls, case: Case, row: int, group: int, parts: tuple[Part, ...], positions: Tensor | None) -> Cell:
        """A cell without the positions where nothing would change, as both runs hold the same there.

        Only where one part is restored: what lies between several may change on the way from one to the next. None
        stands for every position.
        """
        differs_S = case.differs(parts[0])
        every = range(len(differs_S)) if positions is None else positions.tolist()
        kept = [place for place in every if place < len(differs_S) and (len(parts) > 1 or differs_S[place])]
        return cls(case, row, group, parts, torch.tensor(kept, dtype=torch.long), min(kept, default=0))


@torch.no_grad()
def run_scores(model: MultimodalModel, run: Run, readout: Readout, rows: int = 1) -> Tensor:
    """Readout of a run as it is, [rows]."""
    with ExitStack() as stack:
        for site, edit in run.edits:
            stack.enter_context(Edit(model, site, edit))
        return readout(run.batch, [run.query] * rows)


def restore(clean_SD: Tensor, chosen_RS: Tensor, channels_RD: Tensor | None = None) -> TokenEdit:
    """An edit that puts clean activations back at the chosen positions of each row.

    Args:
        clean_SD: the clean run's activations at the site.
        chosen_RS: bool, which positions of which row of the batch are restored.
        channels_RD: bool, which channels of each row; None = all.
    """

    def put_back(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        clean_ND = clean_SD.to(acts_ND)[where.position]
        if channels_RD is None:
            return clean_ND
        return torch.where(channels_RD.to(acts_ND.device)[where.batch_index], clean_ND, acts_ND)

    return TokenEdit(put_back, tokens=chosen_RS)


def restoring(cells: Sequence[Cell]) -> tuple[tuple[str, TokenEdit], ...]:
    """The edits, one per site, under which row r of a batch restores cells[r]."""
    return _restoring([(row, cell, part) for row, cell in enumerate(cells) for part in cell.parts], len(cells))


def _restoring(users: Sequence[tuple[int, Cell, Part]], rows: int) -> tuple[tuple[str, TokenEdit], ...]:
    of_site: dict[str, list[tuple[int, Cell, Part]]] = defaultdict(list)
    for user in users:
        of_site[user[2].site].append(user)
    return tuple((site, _restoring_at(site, found, rows)) for site, found in of_site.items())


def _restoring_at(site: str, users: Sequence[tuple[int, Cell, Part]], rows: int) -> TokenEdit:
    cases = list(dict.fromkeys(cell.case for _, cell, _ in users))
    clean_CSD = torch.stack([case.clean_acts[site] for case in cases])
    _, length, width = clean_CSD.shape
    chosen_RS, channels_RD = torch.zeros(rows, length, dtype=torch.bool), torch.zeros(rows, width, dtype=torch.bool)
    case_R = torch.zeros(rows, dtype=torch.long)
    for row, cell, part in users:
        chosen_RS[row, cell.positions] = True
        channels_RD[row, part.channels] = True
        case_R[row] = cases.index(cell.case)

    def put_back(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        clean_ND = clean_CSD.to(acts_ND)[case_R.to(acts_ND.device)[where.batch_index], where.position]
        return torch.where(channels_RD.to(acts_ND.device)[where.batch_index], clean_ND, acts_ND)

    return TokenEdit(put_back, tokens=chosen_RS)


def whole_scores(model: MultimodalModel, cells: Sequence[Cell], readout: Readout) -> Tensor:
    """Scores [cells] of one whole pass in which row r of the repeated corrupt batch restores cells[r], of one case."""
    corrupt = cells[0].case.corrupt
    repeated = Run(corrupt.query, corrupt.batch.rows([0] * len(cells)), corrupt.edits + restoring(cells))
    return run_scores(model, repeated, readout, len(cells))


# Passes that begin above what nothing changes -------------------------------------------------------------------------


@lru_cache(maxsize=4096)  # of every cell, several times
def block_of(parts: tuple[Part, ...]) -> int:
    """The first block of its tower that a row which restores `parts` must compute; below, it is the corrupt run."""
    return min(_layer(part) + part.site.endswith(".resid_post") for part in parts)


def _is_stream(part: Part, block: int) -> bool:
    """Whether a part is the residual stream as it enters a block."""
    return part.site.endswith((".resid_pre", ".resid_post")) and block_of((part,)) == block


def _layer(part: Part) -> int:
    return int(_matched(part)["layer"])


def _matched(part: Part) -> re.Match[str]:
    match = _NUMBERED.fullmatch(part.site)
    assert match is not None, part.site  # `why_whole` says so first
    return match


def streams_needed(model: MultimodalModel, rows: Mapping[str, Sequence[Part]]) -> list[str]:
    """Sites of the corrupt run that joined passes start from: the streams where rows join, and finished towers."""
    first = _matched(next(iter(rows.values()))[0])
    joins = {block_of(parts) for parts in rows.values()}
    return [*(entering(first["tower"], block) for block in sorted(joins)), *other_tops(model, first["stream"])]


def why_whole(model: MultimodalModel, rows: Mapping[str, Sequence[Part]], corrupt: Sequence[Run]) -> str:
    """Why every cell needs a whole pass; empty where passes can begin inside the tower.

    All sites must lie in the numbered blocks of one stream, and the corrupt runs' own edits below or outside them.
    """
    sites = list(dict.fromkeys(part.site for parts in rows.values() for part in parts))
    found = [_NUMBERED.fullmatch(site) for site in sites]
    if outside := [site for site, match in zip(sites, found, strict=True) if match is None]:
        return f"{outside[0]} is not in a numbered layer"
    towers = {match["stream"] for match in found if match}
    if len(towers) > 1 or not towers <= set(model.streams):
        return f"sites of {', '.join(sorted(towers))} are restored"
    lowest = min(block_of(parts) for parts in rows.values())
    for edited in dict.fromkeys(site for run in corrupt for site, _ in run.edits):
        match = _NUMBERED.fullmatch(edited)
        if match is None or match["stream"] not in towers or int(match["layer"]) < lowest:
            continue
        if edited != f"{match['tower']}{lowest}.resid_pre":
            return f"the corruption enters at {edited}, inside what is restored"
    return ""


def joined_scores(model: MultimodalModel, cells: Sequence[Cell], readout: Readout, prefix: bool) -> Tensor:
    """Scores [cells] of one pass that each cell joins at the first block in which it differs from its corrupt run.

    Args:
        cells: of one case; of several cases of equal shapes where a prefix is kept.
        prefix: leave out the positions before the first that any cell restores, as a causal tower may that is the whole
            model but for its inputs.
    """
    tower, stream = _matched(cells[0].parts[0]).group("tower", "stream")
    start = 0
    if prefix:  # the columns that are read begin at the prompt's end
        start = min(min(cell.first, int(cell.case.corrupt.batch.prompt_end.min())) for cell in cells)
    order = sorted(range(len(cells)), key=lambda index: block_of(cells[index].parts))
    rows = [cells[index] for index in order]
    cases = list(dict.fromkeys(cell.case for cell in rows))
    case_R = [cases.index(cell.case) for cell in rows]

    joining: dict[int, list[int]] = defaultdict(list)
    restored: dict[Part, list[tuple[int, Cell]]] = defaultdict(list)
    later = []
    for row, cell in enumerate(rows):
        block = block_of(cell.parts)
        joining[block].append(row)
        for part in cell.parts:
            if _is_stream(part, block):
                restored[part].append((row, cell))
            else:
                later.append((row, cell, part))
    streams = {
        block: torch.stack([case.corrupt_acts[entering(tower, block)][start:] for case in cases])[
            [case_R[row] for row in joined_rows]]
        for block, joined_rows in joining.items()
    }  # fmt: skip
    for part, users in restored.items():
        stream_RSD, first = streams[block_of(users[0][1].parts)], joining[block_of(users[0][1].parts)][0]
        clean_CSD = torch.stack([case.clean_acts[part.site] for case in cases])
        place_P = torch.cat([cell.positions for _, cell in users])
        n_places = torch.tensor([len(cell.positions) for _, cell in users])
        row_P = torch.tensor([row - first for row, _ in users]).repeat_interleave(n_places)
        case_P = torch.tensor([case_R[row] for row, _ in users]).repeat_interleave(n_places)
        stream_RSD[row_P, place_P - start, part.channels] = clean_CSD[case_P, place_P, part.channels]

    above = inputs_above(model, 0, Batch.cat([case.corrupt.batch for case in cases]))
    kept, edits = None, cases[0].corrupt.edits
    if prefix:
        above, edits = model.after_prefix(above, start), ()  # the corruption is in the streams, and nothing else is run
        kept = _before(start, [cell.case for cell in rows])
    tops = {site: cases[0].corrupt_acts[site][None] for site in other_tops(model, stream)}
    above = above.rows(case_R)
    with ExitStack() as stack:
        stack.enter_context(resumed(model, tops))
        stack.enter_context(joined(model, tower, streams, above, kept))
        for site, edit in (*edits, *_restoring(later, len(rows))):
            stack.enter_context(Edit(model, site, edit))
        scores = readout(above, [cell.case.corrupt.query for cell in rows])
    return torch.empty_like(scores).index_copy(0, torch.tensor(order, device=scores.device), scores)


def _before(position: int, cases: Sequence[Case]) -> tuple[Prefix, list[int]]:
    """Keys and values of the positions before one, and the row of them that each case follows."""
    shared = list({id(case.prefix): case.prefix for case in cases}.values())
    first, rows = {}, 0
    for prefix in shared:
        first[id(prefix)] = rows
        rows += len(prefix[0][0])
    of_row = [first[id(case.prefix)] + case.prefix_row for case in cases]
    if len(shared) == 1:
        return [(keys[:, :, :position], values[:, :, :position]) for keys, values in shared[0]], of_row
    layers = zip(*shared, strict=True)
    return [(torch.cat([keys[:, :, :position] for keys, _ in each]),
             torch.cat([values[:, :, :position] for _, values in each])) for each in layers], of_row


def chunks(cells: Sequence[Cell], size: int, prefix: bool) -> Iterator[Sequence[Cell]]:
    """Cells that share a joined pass: of like positions where a prefix is kept, then of like layers."""

    def late(cell: Cell) -> tuple[int, int]:
        return (-cell.first if prefix else 0, -block_of(cell.parts))

    ordered = sorted(cells, key=late)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
