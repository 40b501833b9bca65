"""One pass over samples that gathers what is known about every latent, and the table made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmma.console import progress
from cmma.data.samples import Sample
from cmma.features.concepts import match_concepts, sample_labels
from cmma.features.encode import encode_samples
from cmma.features.examples import ExampleCollector
from cmma.features.intrinsic import LogHistogram, cross_modal_consistency, monosemanticity
from cmma.features.specialisation import DEAD, ActivationSums, specialise
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.metrics import gini

_SAMPLES_AT_ONCE = 64  # offered to the example collector together: it sorts once per offer


@dataclass(frozen=True, eq=False)
class FeatureData:
    """What one pass over the samples leaves: totals, example candidates and histograms of every latent.

    Attributes:
        layer: of the records. keys: the samples, in order; every sample index refers to it.
    """

    layer: int
    keys: tuple[str, ...]
    sums: ActivationSums
    examples: ExampleCollector
    histogram: LogHistogram

    @property
    def scores_NK(self) -> Tensor:
        """Largest activation of every latent in every sample, over both modalities."""
        return self.sums.maxima_NMK.amax(1)


def collect(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], batch_size: int = 32,
    n_examples: int = 12, text: str = "caption", floor: float = 0.0, seed: int = 0,
) -> FeatureData:
    """Run the model over `samples` and stream every token's latents into the accumulators.

    Args:
        samples: held out from the dictionary's training.
        n_examples: strongest samples kept per latent.
        text: as in `encode_samples`.
        floor: activations at or below it count as zero (an L1 code leaks small values everywhere).
        seed: of the random draws of examples.
    """
    n, n_latents = len(samples), sae.n_latents
    data = FeatureData(
        layer, tuple(sample.key for sample in samples), ActivationSums(n, n_latents),
        ExampleCollector(n_latents, n_top=n_examples, seed=seed), LogHistogram(n_latents),
    )
    strongest: list[tuple[Tensor, Tensor]] = []
    with progress(f"Reading features of layer {layer}", total=n) as bar:
        for found in encode_samples(model, sae, layer, samples, batch_size, text):
            sample_T = torch.full_like(found.position_T, found.index)
            latents_TK = torch.where(found.latents_TK > floor, found.latents_TK, 0)
            data.sums.add(latents_TK, found.modality_T, sample_T)
            data.histogram.add(latents_TK, found.modality_T)
            score_K, token_K = latents_TK.max(0)
            strongest.append((score_K, found.position_T[token_K]))
            if len(strongest) == _SAMPLES_AT_ONCE or found.index == n - 1:
                scores_BK, positions_BK = (torch.stack(part) for part in zip(*strongest, strict=True))
                first = found.index + 1 - len(strongest)
                data.examples.add(scores_BK, positions_BK, torch.arange(first, found.index + 1))
                strongest.clear()
            bar.advance()
    return data


def feature_table(
    data: FeatureData, samples: Sequence[Sample], tau: float = 0.1, weights: str = "balanced", n_resamples: int = 1000,
    embeddings_ND: Tensor | None = None, seed: int = 0,
) -> pd.DataFrame:
    """Everything known about each latent without running the model again; one row per latent.

    Args:
        data: of the same `samples`.
        tau, weights, n_resamples: see `specialise`.
        embeddings_ND: image embeddings of the samples by another encoder, for the monosemanticity score.
        seed: of the bootstrap and of the selection and scoring halves of the concepts.

    Returns:
        Columns: `layer, feature`; those of `specialise`; `density` (over all tokens); `max_activation`; `concept,
        concept_auroc, concept_f1` (`match_concepts`); `monosemanticity` (with embeddings); `consistency`; `gini`;
        `histogram_visual, histogram_textual` (lists of token counts), `histogram_low, histogram_high` (log10 range).
    """
    table = specialise(data.sums, tau, weights, n_resamples, seed=seed)
    table = table.merge(match_concepts(data.scores_NK.numpy(), sample_labels(samples), seed), on="feature")
    active_K, n_tokens = data.sums.active_MK.sum(0), data.sums.tokens_NM.sum()
    columns = {
        "density": (active_K / n_tokens).numpy(), "max_activation": data.scores_NK.amax(0).numpy(),
        "consistency": cross_modal_consistency(data.sums.means_NMK).numpy(),
        "gini": torch.where(active_K > 0, gini(data.scores_NK.T), torch.nan).numpy(),
        "histogram_visual": data.histogram.counts_MKH[0].tolist(),
        "histogram_textual": data.histogram.counts_MKH[1].tolist(),
        "histogram_low": float(data.histogram.edges[0]), "histogram_high": float(data.histogram.edges[-1]),
    }
    if embeddings_ND is not None:
        columns["monosemanticity"] = monosemanticity(data.scores_NK, embeddings_ND).numpy()
    table = pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)
    table.insert(0, "layer", data.layer)
    return table


def choose_pages(table: pd.DataFrame, n: int, min_samples: int = 5) -> np.ndarray:
    """Latents that get a page: equal numbers of each class, those with the best-matching concept first; sorted.

    Only latents that are active in at least `min_samples` samples are taken, so that there is something to show.
    """
    live = table[(table["class"] != DEAD) & (table["active_samples"] >= min_samples)]
    ranked = live.sort_values(["concept_auroc", "density", "feature"], ascending=[False, False, True])
    turn = ranked.groupby("class").cumcount()  # the first of every class, then the second of every class, ...
    return np.sort(ranked.assign(turn=turn).sort_values("turn", kind="stable")["feature"].head(n).to_numpy())
