"""What every dictionary feature contributes to a readout, all features in one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout, batches
from cmma.console import progress
from cmma.errors import DataError
from cmma.hooks import TokenEdit, Where, splice
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder

_LATENTS_AT_ONCE = 2**26
"""Tokens × features that are held at a time: 0.3 GB."""


@dataclass(frozen=True)
class Attribution:
    """Linear estimates of ablating each feature alone, and how often each is active.

    Attributes:
        effect_K: float64, mean over queries of the estimated change of the readout when the feature is ablated.
        density_K: float64, share of the edited tokens on which the feature is active.
        n: queries behind it.
    """

    effect_K: Tensor
    density_K: Tensor
    n: int


class QueryEffects(NamedTuple):
    """The same query by query, for one batch.

    Attributes:
        queries: those of the batch.
        effect_BK: float32, estimated change of the readout when the feature is ablated.
        tokens_BK: float32, edited tokens on which the feature is active.
        tokens_B: float32, edited tokens.
    """

    queries: Sequence[Query]
    effect_BK: Tensor
    tokens_BK: Tensor
    tokens_B: Tensor


class _Pass(NamedTuple):
    """Records that an edit saw at one site, and the readout's gradient by them."""

    acts_ND: Tensor
    modality_N: Tensor
    row_N: Tensor
    gradient_ND: Tensor


def attribute(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    queries: Sequence[Query],
    readout: Readout,
    *,
    tokens: str = "all",
    steps: int = 1,
    batch_size: int = 8,
) -> Attribution:
    """`query_effects`, averaged over the queries. Raises DataError where there is none."""
    effect_K = torch.zeros(sae.n_latents, dtype=torch.float64)
    active_K = torch.zeros(sae.n_latents, dtype=torch.float64)
    n_tokens = 0.0
    found = query_effects(model, sae, layer, queries, readout, tokens=tokens, steps=steps, batch_size=batch_size)
    for each in found:
        effect_K += each.effect_BK.sum(dim=0).double().cpu()
        active_K += each.tokens_BK.sum(dim=0).double().cpu()
        n_tokens += float(each.tokens_B.sum())
    return Attribution(effect_K / len(queries), active_K / max(1.0, n_tokens), len(queries))


def query_effects(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    queries: Sequence[Query],
    readout: Readout,
    *,
    tokens: str = "all",
    steps: int = 1,
    batch_size: int = 8,
) -> Iterator[QueryEffects]:
    """Effect of ablation ≈ Σ_tokens (0 - a) ⊙ ∂m/∂a, the reconstruction error passed through as a constant.

    As in sparse feature circuits (Marks et al. 2024), and in Zhang et al. 2024 (arXiv 2411.14982) for LLaVA. Exact
    where the readout is linear in the latents; attention saturation and cancellation hide features otherwise, so verify
    what matters by ablation. The decoder is linear, so ∂m/∂a_k is the gradient by the record along feature k.

    Args:
        tokens: whose latents are ablated: `all`, `visual` or `textual`.
        steps: 1 takes the gradient at the activations themselves; more average it over the midpoints of `steps` equal
            pieces of the way from all latents ablated to none (integrated gradients).

    Raises:
        DataError: no query.
    """
    if not queries:
        raise DataError("attribution needs at least one query; the samples chosen for selection have none")
    directions = {modality: sae.directions(modality) for modality in (Modality.VISUAL, Modality.TEXTUAL)}
    with progress("Attributing to features", total=len(queries)) as bar:
        for batch, some in batches(model, queries, batch_size):
            zero_BK = torch.zeros(len(some), sae.n_latents, device=model.device)
            effects = QueryEffects(some, zero_BK, zero_BK.clone(), zero_BK.new_zeros(len(some)))
            for step in range(steps):
                scale = 1.0 if steps == 1 else (step + 0.5) / steps
                for seen in _passes(model, sae, layer, batch, some, readout, tokens, scale):
                    _add(effects, sae, directions, seen, 1 / steps)
            yield effects
            bar.advance(len(some))


def _add(
    effects: QueryEffects, sae: SparseAutoencoder, directions: dict[Modality, Tensor], seen: _Pass, weight: float
) -> None:
    """Latents times the gradient along their features, summed over the tokens of each query."""
    effects.tokens_B.index_add_(0, seen.row_N, torch.full_like(seen.row_N, weight, dtype=torch.float32))
    for modality, direction_KD in directions.items():
        chosen = torch.nonzero(seen.modality_N == modality).flatten()
        for at in chosen.split(max(1, _LATENTS_AT_ONCE // sae.n_latents)):
            with torch.no_grad():
                latents_NK = sae.encode(seen.acts_ND[at], seen.modality_N[at]).float()
            along_NK = seen.gradient_ND[at].to(direction_KD) @ direction_KD.T
            effects.effect_BK.index_add_(0, seen.row_N[at], latents_NK * along_NK, alpha=-weight)
            effects.tokens_BK.index_add_(0, seen.row_N[at], (latents_NK > 0).float(), alpha=weight)


def _passes(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, batch: Batch, queries: Sequence[Query],
    readout: Readout, tokens: str, scale: float,
) -> list[_Pass]:  # fmt: skip
    """One pass forwards and backwards, with every latent scaled by `scale`; an entry per stream that holds records."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    leaves: list[Tensor] = []

    def through_leaf(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        leaves.append(torch.zeros_like(acts_ND).requires_grad_())
        seen.append((acts_ND.detach(), modality_N, where.batch_index))
        # acts_ND keeps its graph: where one stream reads the other, effects also run through what is below this site.
        return acts_ND + _scaled_away(sae, acts_ND.detach(), modality_N, scale) + leaves[-1]

    with torch.enable_grad(), splice(model, layer, TokenEdit(through_leaf, cast(Any, tokens), "prefill")):
        scores_B = readout(batch, queries)
    gradients = torch.autograd.grad(scores_B.sum(), leaves, allow_unused=True)
    return [
        _Pass(*read, torch.zeros_like(read[0]) if gradient_ND is None else gradient_ND)
        for read, gradient_ND in zip(seen, gradients, strict=True)
    ]


@torch.no_grad()
def _scaled_away(sae: SparseAutoencoder, acts_ND: Tensor, modality_N: Tensor, scale: float) -> Tensor | float:
    """decode(scale · a) − decode(a): what scaling every latent adds to the records."""
    if scale == 1:
        return 0.0
    parts = []
    for at in torch.arange(len(acts_ND), device=acts_ND.device).split(max(1, _LATENTS_AT_ONCE // sae.n_latents)):
        latents_NK = sae.encode(acts_ND[at], modality_N[at])
        parts.append(sae.decode(scale * latents_NK, modality_N[at]) - sae.decode(latents_NK, modality_N[at]))
    return torch.cat(parts).to(acts_ND)
