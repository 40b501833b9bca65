"""What the codes of an image and of its text share: metrics of pairs, each to be read beside its floors.

Pairs are pooled over tokens (`cmma.features.pooling`): a code is the largest activation of each latent. What is decoded
is the mean code, and it is compared with the mean record, since decoding is affine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmma.evaluation.embeddings import Embeddings
from cmma.evaluation.retrieval import retrieve
from cmma.features.intrinsic import cross_monosemanticity, monosemanticity
from cmma.features.pairing import (
    bridge_diagonal,
    code_cosine,
    matching_latents,
    modality_score,
    retrievable,
    squared_errors,
    support_jaccard,
)
from cmma.features.pooling import PooledPairs
from cmma.features.specialisation import MODALITIES
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.metrics import SAEMetrics
from cmma.statistics.bootstrap import RESAMPLES, Interval, bootstrap_mean, bootstrap_ratio

RECALL_AT = (1, 5, 10)
SHARED = (0.05, 0.95)
"""Modality scores between which both modalities use a latent."""


@torch.no_grad()
def pair_metrics(
    sae: SparseAutoencoder, pairs: PooledPairs, block: int = 100, n_resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Metrics of pairs by name; intervals resample pairs. For a floor give it `pairs.with_texts_of(strangers(…))`.

    Args:
        pairs: codes of this dictionary.
        block: retrieval is among so many pairs.

    Returns:
        `code_cosine`, `support_jaccard`; `bridge_diagonal` (absent where the modalities have no space in common);
        `image_to_text_r@k`, `text_to_image_r@k` by the cosine of codes; `cross_error_textual`, the error of the mean
        textual record decoded from the visual code over its variance among samples, and `cross_error_visual`.
    """
    visual_NK, textual_NK = pairs.strongest_MNK
    found = {
        "code_cosine": bootstrap_mean(code_cosine(visual_NK, textual_NK), n_resamples),
        "support_jaccard": bootstrap_mean(support_jaccard(visual_NK, textual_NK), n_resamples),
    }
    if len(sae.standardiser.blocks) == 1:
        directions = (sae.directions(modality).cpu() for modality in MODALITIES)
        found["bridge_diagonal"] = plain(bridge_diagonal(visual_NK, textual_NK, *directions), len(pairs))
    ranks = retrieve(retrievable(visual_NK, 0), retrievable(textual_NK, 1), block)
    for k in RECALL_AT:
        found |= {f"{way}_r@{k}": interval for way, interval in ranks.recall(k, n_resamples).items()}
    for target, source in ((Modality.TEXTUAL, Modality.VISUAL), (Modality.VISUAL, Modality.TEXTUAL)):
        code_N = torch.full((len(pairs),), int(target), device=sae.W_dec.device)
        decoded_ND = sae.decode(pairs.mean_MNK[source].to(sae.W_dec), code_N).cpu()
        errors = squared_errors(decoded_ND, pairs.acts_MND[target])
        found[f"cross_error_{target.name.lower()}"] = bootstrap_ratio(*errors, n_resamples)
    return found


def modality_scores(metrics: SAEMetrics) -> Tensor:
    """Modality score of every latent over all records, [K]: 1 for images alone, 0 for texts alone, NaN if dead."""
    visual_K, textual_K = metrics.mean_activation_MK[:2]
    return modality_score(visual_K[None], textual_K[None]).cpu()


def shared_latents(score_K: Tensor) -> Interval:
    """Share of the live latents that both modalities use (`SHARED`)."""
    live_K = score_K[score_K.isfinite()]
    shared_K = (live_K >= SHARED[0]) & (live_K <= SHARED[1])
    return plain(float(shared_K.double().mean()), len(live_K))


def concept_metrics(pairs: PooledPairs, embeddings: Embeddings, with_text: bool = True) -> dict[str, Interval]:
    """Monosemanticity by an encoder that has nothing to do with the model, means over the latents that have one.

    For a floor give it embeddings in another order.

    Args:
        embeddings: of the samples of `pairs`.
        with_text: whether the text that was embedded is the one that the model read.
    """
    image_ND, text_ND = torch.from_numpy(embeddings.image_ND), torch.from_numpy(embeddings.text_ND)
    visual_NK, textual_NK = pairs.strongest_MNK
    scores = {"monosemanticity_visual": monosemanticity(visual_NK, image_ND)}
    if with_text:
        scores["monosemanticity_textual"] = monosemanticity(textual_NK, text_ND)
        scores["monosemanticity_cross"] = cross_monosemanticity(visual_NK, textual_NK, image_ND, text_ND)
    return {name: plain(float(score_K.nanmean()), int(score_K.isfinite().sum())) for name, score_K in scores.items()}


def seed_agreement(
    sae: SparseAutoencoder, pairs: PooledPairs, other: SparseAutoencoder, other_pairs: PooledPairs,
    n_resamples: int = RESAMPLES,
) -> dict[Modality, dict[str, Interval]]:
    """How alike two dictionaries that differ in their seed encode the *same* images, and the same texts.

    What no pair of modalities can be expected to exceed. Latents are matched one to one by the cosine of directions.

    Args:
        other, other_pairs: the second dictionary and its codes of the same samples.

    Returns:
        `code_cosine` and `support_jaccard` for each modality.
    """
    found = {}
    for modality in MODALITIES:
        partner_K = matching_latents(sae.directions(modality), other.directions(modality))
        codes = pairs.strongest_MNK[modality], other_pairs.strongest_MNK[modality][:, partner_K]
        found[modality] = {
            "code_cosine": bootstrap_mean(code_cosine(*codes), n_resamples),
            "support_jaccard": bootstrap_mean(support_jaccard(*codes), n_resamples),
        }
    return found


def plain(value: float, n: int) -> Interval:
    """A number without an interval."""
    return Interval(value, math.nan, math.nan, n, "no interval")
