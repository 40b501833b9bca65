"""What every dictionary feature contributes to a readout, all features in one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout, batches
from cmma.console import progress
from cmma.errors import DataError
from cmma.hooks import TokenEdit, Where, splice
from cmma.models.base import Batch, MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder


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
    """Effect of ablation ≈ Σ_tokens (0 - a) ⊙ ∂m/∂a, the reconstruction error passed through as a constant.

    As in sparse feature circuits (Marks et al. 2024), and in Zhang et al. 2024 (arXiv 2411.14982) for LLaVA. Exact
    where the readout is linear in the latents; attention saturation and cancellation hide features otherwise, so verify
    what matters by ablation.

    Args:
        tokens: whose latents are ablated: `all`, `visual` or `textual`.
        steps: 1 takes the gradient at the activations themselves; more average it over the midpoints of `steps` equal
            pieces of the way from all latents ablated to none (integrated gradients).

    Raises:
        DataError: no query.
    """
    if not queries:
        raise DataError("attribution needs at least one query; the samples chosen for selection have none")
    effect_K = torch.zeros(sae.n_latents, dtype=torch.float64)
    active_K = torch.zeros(sae.n_latents, dtype=torch.float64)
    n_tokens = 0
    with progress("Attributing to features", total=len(queries)) as bar:
        for batch, some in batches(model, queries, batch_size):
            for step in range(steps):
                scale = 1.0 if steps == 1 else (step + 0.5) / steps
                reads = _latent_gradients(model, sae, layer, batch, some, readout, tokens, scale)
                for latents_NK, gradient_NK in reads:
                    effect_K -= (latents_NK * gradient_NK).sum(dim=0).double().cpu() / steps
                    if step == 0:
                        active_K += (latents_NK > 0).sum(dim=0).double().cpu()
                        n_tokens += len(latents_NK)
            bar.advance(len(some))
    return Attribution(effect_K / len(queries), active_K / max(1, n_tokens), len(queries))


def _latent_gradients(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, batch: Batch, queries: Sequence[Query],
    readout: Readout, tokens: str, scale: float,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Latents [N, K] of the edited tokens and the readout's gradient by them, with every latent scaled by `scale`.

    One entry per stream that holds records (a dual encoder has two).
    """
    latents: list[Tensor] = []
    leaves: list[Tensor] = []

    def through_leaf(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        with torch.no_grad():
            latents_NK = sae.encode(acts_ND, modality_N)
            decoded_ND = sae.decode(latents_NK, modality_N)
        leaf_NK = (latents_NK * scale).requires_grad_()
        latents.append(latents_NK)
        leaves.append(leaf_NK)
        # acts_ND keeps its graph: where one stream reads the other, effects also run through what is below this site.
        return sae.decode(leaf_NK, modality_N) + (acts_ND - decoded_ND)

    with torch.enable_grad(), splice(model, layer, TokenEdit(through_leaf, cast(Any, tokens), "prefill")):
        scores_B = readout(batch, queries)
    gradients = torch.autograd.grad(scores_B.sum(), leaves, allow_unused=True)
    return [
        (latents_NK, torch.zeros_like(latents_NK) if gradient_NK is None else gradient_NK)
        for latents_NK, gradient_NK in zip(latents, gradients, strict=True)
    ]
