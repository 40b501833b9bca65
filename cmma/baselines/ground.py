"""What every method is given: the same images, their records at one layer, and the model's outputs to explain."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmma.baselines.config import BaselinesConfig
from cmma.causal.queries import Query
from cmma.causal.readout import collate_queries
from cmma.data.samples import Sample
from cmma.evaluation.captioning import caption_samples
from cmma.features.concepts import Labels
from cmma.hooks import Edit, TokenEdit, Trace, Where
from cmma.mitigation.spoken import SpokenMention
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel
from cmma.sae.records import ActivationReader
from cmma.sae.standardiser import Standardiser

Readout = Callable[[Batch, Sequence[Query]], Tensor]
"""(batch, one query per row) → [rows] or [rows, outputs]; differentiable."""


@dataclass(frozen=True)
class NotApplicable:
    """Why a method cannot mean anything in a comparison."""

    reason: str


@dataclass(frozen=True, eq=False)
class Images:
    """Some images as all methods see them.

    Attributes:
        queries: each image with the instruction and the caption that the model itself gives it.
        records_IPD: the model's own units, at the image tokens of the layer, row by row.
        labels: concepts that the images show.
    """

    queries: tuple[Query, ...]
    records_IPD: Tensor
    labels: Labels

    @property
    def samples(self) -> list[Sample]:
        return [query.sample for query in self.queries]

    @property
    def said_IC(self) -> np.ndarray:
        """bool [I, C]: which concepts the model's own caption says."""
        said = [[re.search(rf"\b{re.escape(name)}\b", query.answer) is not None for name in self.labels.names]
                for query in self.queries]
        return np.array(said, dtype=bool).reshape(len(self.queries), len(self.labels.names))


@dataclass(frozen=True, eq=False)
class Mentions:
    """What hallucination is learnt from: objects named on the calibration images.

    Attributes:
        every: all first mentions. units: one per image, so that images are independent.
    """

    every: tuple[SpokenMention, ...]
    units: tuple[SpokenMention, ...]

    @property
    def wrong(self) -> list[SpokenMention]:
        """Mentions of objects that are not there."""
        return [mention for mention in self.every if mention.hallucinated]

    @property
    def label_N(self) -> np.ndarray:
        """bool [units]: hallucinated."""
        return np.array([mention.hallucinated for mention in self.units])


@dataclass(frozen=True, eq=False)
class Ground:
    """What the methods share.

    Attributes:
        layer: whose image tokens are read and changed.
        reader: cached records without labels, the same for all that are fitted to records.
        standardiser: statistics of these records.
        selection: labelled images, the same for all that choose or learn by labels.
    """

    model: MultimodalModel
    layer: int
    reader: ActivationReader
    standardiser: Standardiser
    selection: Images
    config: BaselinesConfig

    @property
    def baseline_D(self) -> Tensor:
        """The image token that says nothing: the mean of all."""
        return self.standardiser.mean_MD[Modality.VISUAL]

    def standardise(self, records_IPD: Tensor) -> Tensor:
        """Image tokens in standardised units, [..., D]."""
        flat_ND = records_IPD.flatten(0, -2)
        visual_N = torch.full((len(flat_ND),), int(Modality.VISUAL), device=flat_ND.device)
        return self.standardiser.standardise(flat_ND, visual_N).view_as(records_IPD)


def images(
    model: MultimodalModel, layer: int, samples: Sequence[Sample], names: Sequence[str], config: BaselinesConfig
) -> Images:
    """Caption the samples, read their image tokens, and look up which concepts they carry."""
    captions = caption_samples(model, samples, config.batch_size, config.control.max_new_tokens)
    queries = tuple(
        Query(sample, model.spec.prompt, caption) for sample, caption in zip(samples, captions, strict=True))
    truth_IC = np.array([[name in sample.labels for name in names] for sample in samples], dtype=bool)
    records_IPD = image_records(model, layer, samples, config.batch_size)
    return Images(queries, records_IPD, Labels(tuple(names), truth_IC.reshape(len(samples), len(names))))


@torch.no_grad()
def image_records(model: MultimodalModel, layer: int, samples: Sequence[Sample], batch_size: int) -> Tensor:
    """Float[I, P, D]: records at the patches of each image, which nothing of the text can reach."""
    (place,) = model.record_sites(layer)
    parts = []
    for start in range(0, len(samples), batch_size):
        batch = model.collate(samples[start : start + batch_size])
        with Trace(model, [place.site], stop=True) as acts:
            model(**batch)
        position_BP = model.image_positions(batch, layer)
        parts.append(acts[place.site][torch.arange(len(position_BP))[:, None], position_BP].float())
    return torch.cat(parts)


class OutputOfRecords:
    """A model's output as a function of the image tokens at one layer: what attribution methods explain.

    Args:
        queries: one per image, with its teacher-forced answer.
    """

    def __init__(self, model: MultimodalModel, layer: int, queries: Sequence[Query], readout: Readout) -> None:
        self._model, self._queries, self._readout = model, queries, readout
        (self._place,) = model.record_sites(layer)
        self._batch = collate_queries(model, queries)
        position_BP = model.image_positions(self._batch, layer)
        self._patches_BS = torch.zeros_like(self._batch["input_ids"], dtype=torch.bool).scatter(1, position_BP, True)

    def __call__(self, records_NPD: Tensor, row_N: Tensor) -> Tensor:
        """Outputs [N] or [N, C] of the queries `row_N` with their image tokens replaced."""

        def instead(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            return records_NPD.flatten(0, 1)

        edit = TokenEdit(instead, self._patches_BS[row_N], "prefill")
        with Edit(self._model, self._place.site, edit):
            return self._readout(self._batch.rows(row_N), [self._queries[row] for row in row_N.tolist()])


class PhraseCounts:
    """How often the model is expected to say each phrase where its own caption stands: Σ_t Π_j p(word j at t + j).

    Args:
        phrases: words as captions have them ("red ring").
    """

    def __init__(self, model: MultimodalModel, phrases: Sequence[str]) -> None:
        self._model: Any = model
        self._ids = [model.answer_ids(phrase) for phrase in phrases]

    def __call__(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """Expected counts [B, C]."""
        logits_BTV, _, answer_BT = self._model.answer_logits(batch)
        p_BTV = torch.where(answer_BT[..., None], logits_BTV.float().softmax(-1), 0)
        counts = []
        for ids in self._ids:
            n = p_BTV.shape[1] - len(ids) + 1
            said_BT = torch.stack([p_BTV[:, j : j + n, token] for j, token in enumerate(ids)]).prod(0)
            counts.append(said_BT.sum(1))
        return torch.stack(counts, dim=1)
