"""Information flow by attention knockout: what the readout loses without the attention between two groups.

Geva et al. 2023 (arXiv 2304.14767) for language models, Zhang et al. 2024 (arXiv 2411.18620) for LLaVA.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmma.causal.flows import Flow, Groups, find_flows, flow_groups
from cmma.causal.modules import window
from cmma.causal.queries import Query
from cmma.causal.readout import Readout, batches
from cmma.console import progress, warn
from cmma.errors import ConfigError, DataError
from cmma.hooks import Knockout, Trace
from cmma.hooks.resume import AGREE, inputs_above, other_tops, resumed
from cmma.models.base import Batch, MultimodalModel

SAMPLES_AT_ONCE = 8
"""Samples whose streams are kept while their cells run."""
WINDOW, DEPTH = 9, 32
"""Layers that the literature blocks together, in models of this depth."""


@dataclass(frozen=True)
class KnockoutResult:
    """What every query's readout becomes without a flow, layer by layer.

    Attributes:
        keys: image of each query, length N.
        clean_N: readout of the run as it is.
        score_NL: flow → readout with the flow blocked in a window around each layer; NaN where the query lacks a group.
        layers: flow → centres of the windows.
        streams: flow → the tower whose layers these are.
        readout: what the scores are.
        width: layers in a window.
    """

    keys: tuple[str, ...]
    clean_N: np.ndarray
    score_NL: Mapping[str, np.ndarray]
    layers: Mapping[str, tuple[int, ...]]
    streams: Mapping[str, str]
    readout: str
    width: int

    @property
    def relative(self) -> bool:
        """Whether changes are in percent of the clean readout; differences of logits are left as they are."""
        return self.readout not in ("logit_difference", "log_probability")

    def change_NL(self, flow: str) -> np.ndarray:
        """100 · (p′ − p) / p, or m′ − m where that is not positive by nature."""
        change_NL = self.score_NL[flow] - self.clean_N[:, None]
        return 100 * change_NL / self.clean_N[:, None] if self.relative else change_NL


@dataclass(frozen=True)
class _Cell:
    """One flow blocked in one window of layers."""

    flow: Flow
    column: int
    centre: int
    layers: range


def scaled_window(depth: int) -> int:
    """9 of 32 layers, in proportion: 3 of 12."""
    return max(1, round(WINDOW * depth / DEPTH))


@torch.no_grad()
def knock_out(
    model: MultimodalModel,
    queries: Sequence[Query],
    readout: Readout,
    *,
    flows: Sequence[str] = (),
    width: int = 0,
    layers: Sequence[int] | None = None,
    rows_per_forward: int = 64,
) -> KnockoutResult:
    """Block each flow in a window around each layer, one cell at a time.

    Cells share passes: a row of a pass is one query with one flow blocked in one window. Passes start at the stream
    below the window, from the clean run, and the towers that the window cannot reach are given; checked on the first
    queries, and where that does not reproduce the clean run whole passes are run.

    Args:
        flows: names, such as "image->question"; empty = all that the model has.
        width: layers blocked together; 0 = `scaled_window`.
        layers: centres; None = every layer.

    Raises:
        DataError: no query.
        ConfigError: a flow or a layer that the model does not have.
    """
    if not queries:
        raise DataError("knockout needs at least one query; the samples have none that the model answers right")
    depths = {stream: _depth(model, stream) for stream in {each.row.queries for each in model.attentions.values()}}
    width = width or scaled_window(max(depths.values(), default=DEPTH))
    clean_N = np.full(len(queries), np.nan)
    score_NL: dict[str, np.ndarray] = {}
    cells: list[_Cell] = []
    resumes: dict[str, bool] = {}
    with progress("Knocking attention out", total=len(queries)) as bar:
        done = 0
        for batch, some in batches(model, queries, SAMPLES_AT_ONCE):
            clean_B, acts, groups = _clean_run(model, batch, some, readout)
            clean_N[done : done + len(some)] = clean_B.double().cpu()
            if not cells:
                cells = _cells(model, find_flows(model, groups, flows), depths, width, layers)
                for cell in cells:
                    score_NL[cell.flow.name] = np.full((len(queries), cell.column + 1), np.nan)
                for stream, depth in depths.items():
                    resumes[stream] = _resumes(model, batch, some, acts, readout, clean_B, stream, depth)
            for together in _sharing(cells):
                rows = [(row, cell) for cell in together for row in _with_both(groups, cell.flow)]
                for start in range(0, len(rows), rows_per_forward):
                    chunk, resume = rows[start : start + rows_per_forward], resumes[together[0].flow.queries]
                    scores = _scores(model, batch, some, acts, groups, chunk, readout, resume).double().cpu()
                    for (row, cell), score in zip(chunk, scores.tolist(), strict=True):
                        score_NL[cell.flow.name][done + row, cell.column] = score
            done += len(some)
            bar.advance(len(some))
    centres = {name: tuple(cell.centre for cell in cells if cell.flow.name == name) for name in score_NL}
    streams = {cell.flow.name: cell.flow.queries for cell in cells}
    keys = tuple(query.key for query in queries)
    return KnockoutResult(keys, clean_N, score_NL, centres, streams, readout.name, width)


def _cells(
    model: MultimodalModel, flows: Sequence[Flow], depths: Mapping[str, int], width: int, layers: Sequence[int] | None
) -> list[_Cell]:
    """Every flow with every window; the columns of a flow are its centres."""
    cells = []
    for flow in flows:
        depth = depths[flow.queries]
        if wrong := [layer for layer in layers or () if not 0 <= layer < depth]:
            raise ConfigError(
                f"trace.layers holds {wrong[0]}; {flow.queries} layers of {model.spec.name} are 0 to {depth - 1}"
            )
        for column, centre in enumerate(range(depth) if layers is None else layers):
            cells.append(_Cell(flow, column, centre, range(*window(centre, width, depth))))
    return cells


def _clean_run(
    model: MultimodalModel, batch: Batch, queries: Sequence[Query], readout: Readout
) -> tuple[Tensor, Mapping[str, Tensor], Groups]:
    """Scores [B], the residual streams after every block, and the groups of positions."""
    streams = [name for name in model.site_names() if name.endswith(".resid_post")]
    streams = [name for name in streams if name.split(".")[0] in model.streams]
    with Trace(model, streams) as acts:
        clean_B = readout(batch, queries)
    lengths = {stream: acts[f"{stream}.layers.0.resid_post"].shape[1] for stream in model.streams}
    return clean_B, acts, flow_groups(model, batch, [query.sample for query in queries], lengths)


def _resumes(
    model: MultimodalModel, batch: Batch, queries: Sequence[Query], acts: Mapping[str, Tensor], readout: Readout,
    clean_B: Tensor, stream: str, depth: int,
) -> bool:  # fmt: skip
    """Whether a pass that starts at the top of a stream scores like the whole one. Says so where it does not."""
    index = list(range(len(queries)))
    with ExitStack() as stack:
        above = _start_at(stack, model, batch, acts, stream, depth, index)
        difference = float((readout(above, queries) - clean_B).abs().max())
    exact = difference <= AGREE * max(1.0, float(clean_B.abs().max()))
    if not exact:
        warn(f"{model.spec.name}: passes that resume in {stream} do not reproduce whole ones, which are run instead")
    return exact


def _start_at(
    stack: ExitStack, model: MultimodalModel, batch: Batch, acts: Mapping[str, Tensor], stream: str, layer: int,
    index: Sequence[int],
) -> Batch:  # fmt: skip
    """Have passes start below `layer` of a stream, with row r that of sample index[r]; returns their inputs."""
    given = other_tops(model, f"{stream}.layers.0.resid_post")
    if layer > 0:
        given.append(f"{stream}.layers.{layer - 1}.resid_post")
    stack.enter_context(resumed(model, {site: acts[site][index] for site in given}))
    return (inputs_above(model, 0, batch) if layer > 0 else batch).rows(index)


def _scores(
    model: MultimodalModel, batch: Batch, queries: Sequence[Query], acts: Mapping[str, Tensor], groups: Groups,
    rows: Sequence[tuple[int, _Cell]], readout: Readout, resume: bool,
) -> Tensor:  # fmt: skip
    """Readout [rows] of one pass; row r is a sample with the flow of its cell blocked in the cell's layers."""
    flow, index = rows[0][1].flow, [row for row, _ in rows]
    pairs_RQK = torch.stack([
        groups[flow.queries][cell.flow.target][row][:, None] & groups[flow.keys][cell.flow.source][row]
        for row, cell in rows
    ])  # fmt: skip
    kind = "attention" if flow.queries == flow.keys else "cross_attention"
    blocked = {}
    for layer in range(min(cell.layers[0] for _, cell in rows), max(cell.layers[-1] for _, cell in rows) + 1):
        here_R = torch.tensor([layer in cell.layers for _, cell in rows], device=pairs_RQK.device)
        blocked[f"{flow.queries}.layers.{layer}.{kind}"] = pairs_RQK & here_R[:, None, None]
    with ExitStack() as stack:
        above = batch.rows(index)
        if resume:
            above = _start_at(stack, model, batch, acts, flow.queries, rows[0][1].layers[0], index)
        stack.enter_context(Knockout(model, blocked))
        return readout(above, [queries[row] for row in index])


def _sharing(cells: Sequence[_Cell]) -> list[list[_Cell]]:
    """Cells that can share passes: of the same attention modules, windows beginning at the same layer."""
    shared: dict[tuple[str, str, int], list[_Cell]] = defaultdict(list)
    for cell in cells:
        shared[cell.flow.queries, cell.flow.keys, cell.layers[0]].append(cell)
    return list(shared.values())


def _with_both(groups: Groups, flow: Flow) -> list[int]:
    """The rows of the batch that have positions of both groups."""
    both_B = groups[flow.queries][flow.target].any(dim=1) & groups[flow.keys][flow.source].any(dim=1)
    return both_B.nonzero().flatten().tolist()


def _depth(model: MultimodalModel, stream: str) -> int:
    return sum(each.row.queries == stream == each.row.keys for each in model.attentions.values())
