"""Hallucination-prone features: those that push a hallucinated word, and those that tell when one will come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmma.causal.config import SelectionConfig
from cmma.causal.readout import batches
from cmma.causal.selection import select_features
from cmma.errors import DataError
from cmma.evaluation.vocabulary import Vocabulary
from cmma.features.concepts import auroc
from cmma.hooks import TokenEdit, Where, splice
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.spoken import MentionReadout, SpokenMention, first_of_each_image, word_columns
from cmma.modality import Modality
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import label_permutation_p

_FOLDS = 5


class NothingHallucinated(DataError):
    """The model names no object that is not there."""


@dataclass(frozen=True)
class ProneFeatures:
    """Both rankings, most prone first.

    Attributes:
        attribution: `feature, density, attribution, effect` (of its ablation on the margin of hallucinated words, with
            interval, p and q); those whose ablation lowers the margin.
        prediction: `feature, auroc, hallucinated, faithful` (shares of images in which it is active), `p, q`.
        auroc_cross_validated: of the most predictive feature of four fifths of the images, on the last fifth.
        density_K: share of the tokens on which each latent is active.
    """

    attribution: pd.DataFrame
    prediction: pd.DataFrame
    auroc_cross_validated: float
    density_K: Tensor

    def pool(self, how: str) -> tuple[int, ...]:
        """Features by one of `SELECTIONS`, most prone first; `union` takes the rankings in turn."""
        causal, telling = (table["feature"].tolist() for table in (self.attribution, self.prediction))
        ranked = {
            "attribution": causal, "prediction": telling,
            "union": [each for each in chain(*zip_longest(causal, telling)) if each is not None],
            "intersection": [each for each in causal if each in set(telling)],
        }[how]  # fmt: skip
        return tuple(dict.fromkeys(ranked))


def prone_features(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, mentions: Sequence[SpokenMention],
    vocabulary: Vocabulary, config: MitigationConfig,
) -> ProneFeatures:  # fmt: skip
    """Rank features by attribution and by prediction.

    Attribution is of the object word's margin at hallucinated mentions, exact for those of highest estimate.
    Prediction compares images whose caption hallucinates with the others, one mention each: a feature's evidence is its
    largest activation on the image and (tokens other than `visual`) its activation where the word is decided.

    Raises:
        NothingHallucinated: there are no hallucinated mentions.
    """
    wrong = [mention for mention in mentions if mention.hallucinated]
    if not wrong:
        raise NothingHallucinated(f"{model.spec.name} names no object that is not there on the calibration images, so "
                                  "there is nothing to mitigate; take another mitigation.split or more images")
    selection = select_features(
        model, sae, layer, wrong, MentionReadout(model, vocabulary),
        SelectionConfig(steps=config.steps, verify=2 * config.candidates),  # about half speak against the word
        tokens=config.tokens, batch_size=config.batch_size, seed=config.seed,
    )  # fmt: skip
    causal = selection.table[selection.table["effect"] < 0].sort_values("effect", ignore_index=True)
    causal = causal.head(config.candidates)

    units = first_of_each_image(mentions)
    evidence_NK = evidence(model, sae, layer, units, config.tokens, config.batch_size)
    label_N = np.array([mention.hallucinated for mention in units])
    telling = prediction_table(evidence_NK, label_N, config.seed).head(config.candidates)
    return ProneFeatures(causal, telling, cross_validated_auroc(evidence_NK, label_N, config.seed),
                         selection.density_K)


@torch.no_grad()
def evidence(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, mentions: Sequence[SpokenMention], tokens: str,
    batch_size: int, on_word: bool = False,
) -> np.ndarray:  # fmt: skip
    """Largest activation of every feature over the tokens that speak for a mention: float32 [mentions, K].

    Args:
        tokens: `visual`: the image's; `textual`: the token that predicts the mention's word; `all`: both.
        on_word: take the word's own token in place of the one before it.
    """
    parts = []
    for batch, some in batches(model, mentions, batch_size):
        best_BK = torch.zeros(len(some), sae.n_latents)
        column_B = word_columns(batch.answer_mask, some).cpu() - int(not on_word)

        def keep(acts_ND: Tensor, modality_N: Tensor, where: Where, best: Tensor = best_BK,
                 column: Tensor = column_B) -> Tensor:
            rows_N, position_N = where.batch_index.cpu(), where.position.cpu()
            visual_N = modality_N.cpu() == Modality.VISUAL
            wanted_N = torch.zeros_like(visual_N)
            if tokens != "textual":
                wanted_N |= visual_N
            if tokens != "visual":
                wanted_N |= position_N == column[rows_N]
            latents_NK = sae.encode(acts_ND, modality_N).float().cpu()[wanted_N]
            for row in rows_N[wanted_N].unique().tolist():
                best[row] = torch.maximum(best[row], latents_NK[rows_N[wanted_N] == row].amax(dim=0))
            return acts_ND

        with splice(model, layer, TokenEdit(keep, cast(Any, "all"), "prefill")):
            model(**batch)
        parts.append(best_BK)
    return torch.cat(parts).numpy()


def prediction_table(evidence_NK: np.ndarray, label_N: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Features that are stronger where the label is true, by AUROC; p by permuted labels, q by Benjamini–Hochberg."""
    columns = ["feature", "auroc", "hallucinated", "faithful", "p", "q"]
    if label_N.all() or not label_N.any():
        return pd.DataFrame(columns=columns)
    live = np.flatnonzero(np.ptp(evidence_NK, axis=0) > 0)
    found = evidence_NK[:, live]
    p_K = label_permutation_p(found[label_N], found[~label_N], seed=seed)
    table = pd.DataFrame({
        "feature": live, "auroc": auroc(found, label_N[:, None])[:, 0],
        "hallucinated": (found[label_N] > 0).mean(0), "faithful": (found[~label_N] > 0).mean(0),
        "p": p_K, "q": benjamini_hochberg(p_K),
    }, columns=columns)  # fmt: skip
    return table[table["auroc"] > 0.5].sort_values("auroc", ascending=False, kind="stable", ignore_index=True)


def cross_validated_auroc(evidence_NK: np.ndarray, label_N: np.ndarray, seed: int = 0) -> float:
    """Mean over folds of the AUROC, on the fold, of the feature that has the highest one on the others.

    NaN where no fold has both labels.
    """
    fold_N = np.random.default_rng(seed).permutation(len(label_N)) % _FOLDS
    scores = []
    for fold in range(_FOLDS):
        there_N = fold_N == fold
        if all(0 < label_N[rows].sum() < rows.sum() for rows in (there_N, ~there_N)):
            best = int(auroc(evidence_NK[~there_N], label_N[~there_N, None])[:, 0].argmax())
            scores.append(float(auroc(evidence_NK[there_N][:, [best]], label_N[there_N, None])[0, 0]))
    return float(np.mean(scores)) if scores else float("nan")
