"""Attribution patching: what restoring every node would do, estimated from two passes forwards and one backwards.

Nanda 2023; with integrated gradients as in EAP-IG (Hanna et al. 2024, arXiv 2403.17806).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from cmma.causal.patching import Part, Positions, Run
from cmma.causal.readout import Readout
from cmma.errors import DataError
from cmma.hooks import Edit, TokenEdit, Trace, Where
from cmma.hooks.resume import other_tops
from cmma.models.base import MultimodalModel

Acts = Mapping[str, Tensor]


def patch_estimates(
    model: MultimodalModel,
    clean: Run,
    corrupt: Run,
    rows: Mapping[str, str | Part],
    positions: Positions,
    readout: Readout,
    steps: int = 1,
) -> np.ndarray:
    """Estimated change of the corrupt run's readout when a site is restored at a group of positions, for every cell.

    (clean − corrupt) · ∂m/∂(activation), summed over the positions and channels of the cell: `activation_patch` to
    first order. It misses what the derivative at hand does not show, such as attention that is saturated in the corrupt
    run, and two paths that cancel.

    Args:
        clean, corrupt: a pair of runs, one row each.
        rows: name → site, or some channels of it (one head), all of one stream.
        positions: name of a group → positions in the stream; None = all of them.
        steps: 1 = the derivative in the corrupt run. More: its mean over runs whose inputs to the stream lie at the
            midpoints of `steps` equal pieces of the way from the corrupt to the clean run.

    Returns:
        float64 [rows, groups].

    Raises:
        DataError: the two runs differ in length.
    """
    parts = [row if isinstance(row, Part) else Part(row) for row in rows.values()]
    sites = list(dict.fromkeys(part.site for part in parts))
    clean_acts, corrupt_acts = (traced(model, run, sites, readout) for run in (clean, corrupt))
    for site in sites:
        if clean_acts[site].shape != corrupt_acts[site].shape:
            raise DataError(
                f"sample {clean.query.key!r}: {site} has {clean_acts[site].shape[1]} positions when clean, when "
                f"corrupt {corrupt_acts[site].shape[1]}; attribution needs pairs of equal length"
            )
    effect_SD = {site: torch.zeros(acts_1SD.shape[1:], dtype=torch.float64) for site, acts_1SD in clean_acts.items()}
    for inputs in path_inputs(model, clean, corrupt, sites[0].split(".")[0], readout, steps):
        for site, gradient in zip(sites, input_gradients(model, corrupt, inputs, sites, readout), strict=True):
            effect_SD[site] += ((clean_acts[site] - corrupt_acts[site]) * gradient)[0].double().cpu() / steps
    return np.array([
        [float(effect_S.sum() if at is None else effect_S[at.cpu()].sum()) for at in positions.values()]
        for effect_S in (effect_SD[part.site][:, part.channels].sum(dim=1) for part in parts)
    ])  # fmt: skip


def path_inputs(
    model: MultimodalModel, clean: Run, corrupt: Run, stream: str, readout: Readout, steps: int
) -> Iterator[Acts]:
    """What enters a stream: in the corrupt run, or at the midpoints of `steps` pieces of the way to the clean run."""
    entrances = stream_entrances(model, stream)
    start, end = (traced(model, run, entrances, readout) for run in (corrupt, clean))
    for step in range(steps):
        share = 0.0 if steps == 1 else (step + 0.5) / steps
        yield {site: start[site] + share * (end[site] - start[site]) for site in entrances}


def stream_entrances(model: MultimodalModel, stream: str) -> list[str]:
    """Sites through which everything enters a stream: what its first block is given, and the towers that it reads."""
    return [f"{stream}.layers.0.resid_pre", *other_tops(model, f"{stream}.layers.0.resid_post")]


def input_gradients(
    model: MultimodalModel, run: Run, inputs: Acts, sites: Sequence[str], readout: Readout
) -> list[Tensor]:
    """∂m/∂(activation) at some sites of a run whose entrances are set to `inputs`; zero where m does not depend on it.

    At the input of a module it is the derivative by what the module reads, not by what also passes it by.

    Raises:
        UnknownSite: a site that the model does not have.
    """
    with torch.enable_grad(), ExitStack() as stack:
        for site, edit in run.edits:
            stack.enter_context(Edit(model, site, edit))
        for site, given_1SD in inputs.items():
            stack.enter_context(Edit(model, site, _set(given_1SD.detach().requires_grad_())))
        for site in sites:
            if model.site(site).port == "input":
                stack.enter_context(Edit(model, site, _OWN_COPY))
        acts = stack.enter_context(Trace(model, sites, detach=False))
        score = readout(run.batch, [run.query]).sum()
    found = torch.autograd.grad(score, [acts[site] for site in sites], allow_unused=True)
    return [
        torch.zeros_like(acts[site]) if gradient is None else gradient
        for site, gradient in zip(sites, found, strict=True)
    ]


_OWN_COPY = TokenEdit(lambda acts_ND, modality_N, where: acts_ND, tokens="every")
"""An edit writes what it returns to a tensor of its own, here to one that only the module behind it sees."""


def _set(given_1SD: Tensor) -> TokenEdit:
    def put(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        return given_1SD[where.batch_index, where.position]

    return TokenEdit(put, tokens="every", phase="prefill")


@torch.no_grad()
def traced(model: MultimodalModel, run: Run, sites: Sequence[str], readout: Readout) -> dict[str, Tensor]:
    """Activations [1, S, D] of a run as it is."""
    with ExitStack() as stack:
        for site, edit in run.edits:
            stack.enter_context(Edit(model, site, edit))
        acts = stack.enter_context(Trace(model, sites))
        readout(run.batch, [run.query])
    return {site: acts[site] for site in sites}
