"""Edge attribution patching: what one module says to another through the residual stream.

Syed et al. 2023 (arXiv 2310.10348); with integrated gradients Hanna et al. 2024 (arXiv 2403.17806).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmma.causal.node_attribution import input_gradients, path_inputs, traced
from cmma.causal.patching import Run, run_scores
from cmma.causal.readout import Readout
from cmma.errors import ConfigError
from cmma.hooks import TokenEdit, Where
from cmma.models.base import MultimodalModel

OUTPUT = "output"


class Edges(NamedTuple):
    """Modules of one stream that write to it, modules that read it, and which of the first come before which.

    Attributes:
        sources: name → site of what it adds: "input", "attention 3", "mlp 3".
        targets: name → site of what it reads; "output" reads the finished stream.
        before_ST: bool, the source has written when the target reads.
    """

    sources: dict[str, str]
    targets: dict[str, str]
    before_ST: np.ndarray


def has_edges(model: MultimodalModel, stream: str) -> bool:
    """Whether `stream_edges` has any to give."""
    return f"{stream}.layers.0.attn_in" in model.site_names()


def stream_edges(model: MultimodalModel, stream: str) -> Edges:
    """The edges of a stream to which every module adds what it reads through a norm of its own.

    Raises:
        ConfigError: a stream that is normalised as a whole (BLIP's text towers), or that has no such sites.
    """
    prefix = f"{stream}.layers."
    depth = sum(name.startswith(prefix) and name.endswith(".attn_in") for name in model.site_names())
    if not depth:
        raise ConfigError(f"{stream} of {model.spec.name} has no edges: its modules read a sum that was normalised")
    sources, targets = {"input": f"{prefix}0.resid_pre"}, {}
    for layer in range(depth):
        for kind, port in (("attention", "attn"), ("mlp", "mlp")):
            sources[f"{kind} {layer}"] = f"{prefix}{layer}.{port}_out"
            targets[f"{kind} {layer}"] = f"{prefix}{layer}.{port}_in"
    targets[OUTPUT] = f"{prefix}{depth - 1}.resid_post"
    written = np.arange(len(sources))  # the input first, then one module after the other
    return Edges(sources, targets, written[:, None] <= np.arange(len(targets)))


def edge_estimates(
    model: MultimodalModel, clean: Run, corrupt: Run, edges: Edges, readout: Readout, steps: int = 1
) -> np.ndarray:
    """(clean − corrupt output of the source) · ∂m/∂(what the target reads), over all positions: all edges in one pass.

    Args: as `patch_estimates`; the derivative is along the target's own reading, not along what passes it by.

    Returns:
        float64 [sources, targets]; NaN where the source comes later.
    """
    delta_SPD = _deltas(model, clean, corrupt, edges, readout)
    total_TPD: Tensor | float = 0.0
    stream = next(iter(edges.sources.values())).split(".")[0]
    for inputs in path_inputs(model, clean, corrupt, stream, readout, steps):
        total_TPD = total_TPD + torch.cat(
            input_gradients(model, corrupt, inputs, list(edges.targets.values()), readout)) / steps
    score_ST = torch.einsum("spd,tpd->st", delta_SPD.double(), torch.as_tensor(total_TPD).double())
    return np.where(edges.before_ST, score_ST.cpu().numpy(), np.nan)


@torch.no_grad()
def edge_effects(
    model: MultimodalModel, clean: Run, corrupt: Run, edges: Edges, readout: Readout, rows_per_forward: int = 64
) -> np.ndarray:
    """The same, measured: the target alone is given what it would read had the source its clean output."""
    delta_SPD = _deltas(model, clean, corrupt, edges, readout)
    low = float(run_scores(model, corrupt, readout))
    effect_ST = np.full(edges.before_ST.shape, np.nan)
    pairs = np.argwhere(edges.before_ST)
    sites = list(edges.targets.values())
    for start in range(0, len(pairs), rows_per_forward):
        some_R2 = pairs[start : start + rows_per_forward]
        edits = list(corrupt.edits)
        for target in np.unique(some_R2[:, 1]):
            chosen_R = torch.from_numpy(some_R2[:, 1] == target).to(delta_SPD)
            added_RPD = delta_SPD[some_R2[:, 0]] * chosen_R[:, None, None]
            edits.append((sites[target], _add(added_RPD)))
        repeated = Run(corrupt.query, corrupt.batch.rows([0] * len(some_R2)), tuple(edits))
        effect_ST[tuple(some_R2.T)] = run_scores(model, repeated, readout, len(some_R2)).double().cpu() - low
    return effect_ST


def _deltas(model: MultimodalModel, clean: Run, corrupt: Run, edges: Edges, readout: Readout) -> Tensor:
    """Clean minus corrupt output of every source, [sources, P, D]."""
    sites = list(edges.sources.values())
    one, other = (traced(model, run, sites, readout) for run in (clean, corrupt))
    return torch.cat([one[site] - other[site] for site in sites])


def _add(added_RPD: Tensor) -> TokenEdit:
    def add(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        return acts_ND + added_RPD[where.batch_index, where.position]

    return TokenEdit(add, tokens="every", phase="prefill")
