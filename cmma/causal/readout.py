"""What a causal experiment measures: one number per sample, higher for the clean answer.

A readout runs the model itself, because it knows which logits it needs (at 32,000 words the others would take most of
the memory), and is differentiable, because attribution goes backwards through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cmma.causal.config import ANSWER_READOUTS
from cmma.causal.queries import Query
from cmma.errors import ConfigError, DataError
from cmma.models.base import Batch, MultimodalModel

TIE = 1e-6
"""Cosines that are this close are equal: the same text, in another place of the batch."""


class Readout(ABC):
    """(batch, one query per row) → scores [rows], from one forward pass.

    Attributes:
        name: what the scores are, as reports call it.
    """

    name: str

    def __init__(self, model: MultimodalModel) -> None:
        self.model: Any = model  # answers and cosines are offered by one kind of model each

    @abstractmethod
    def __call__(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """Scores [rows]."""

    @abstractmethod
    def correct(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """bool [rows]: whether the model answers right."""


class AnswerReadout(Readout):
    """How much a generative model prefers the right answer, which the batch holds teacher-forced.

    `log_probability` is Σ log p over the answer's tokens and `probability` its exponential; `first_token_probability`
    is that of the answer's first token alone; `logit_difference` is the logit of the answer's first token minus that of
    the other answer's first token.
    """

    def __init__(self, model: MultimodalModel, name: str) -> None:
        super().__init__(model)
        self.name = name

    def __call__(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        logits_BCV, ids_BC, answer_BC = self.answer_logits(batch, queries)
        rows, first_B = torch.arange(len(queries), device=logits_BCV.device), answer_BC.int().argmax(dim=1)
        if self.name == "logit_difference":
            logits_BV = logits_BCV[rows, first_B]
            answer_B, other_B = (ids.to(rows.device) for ids in self._first_tokens(queries))
            return logits_BV[rows, answer_B] - logits_BV[rows, other_B]
        if self.name == "first_token_probability":
            return logits_BCV[rows, first_B].float().softmax(dim=-1)[rows, ids_BC[rows, first_B]]
        log_p_BC = logits_BCV.float().log_softmax(dim=-1).gather(-1, ids_BC[..., None])[..., 0]
        log_p_B = torch.where(answer_BC, log_p_BC, 0).sum(dim=1)
        return log_p_B if self.name == "log_probability" else log_p_B.exp()

    def correct(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """Greedy decoding says the whole answer."""
        logits_BCV, ids_BC, answer_BC = self.answer_logits(batch, queries)
        return ((logits_BCV.argmax(dim=-1) == ids_BC) | ~answer_BC).all(dim=1)

    def answer_logits(self, batch: Batch, queries: Sequence[Query]) -> tuple[Tensor, Tensor, Tensor]:
        """`MultimodalModel.answer_logits` of a batch in which every row has an answer. Raises DataError where not."""
        if batch.answer_mask is None or not bool(batch.answer_mask.any(dim=1).all()):
            lacking = next((query.key for query in queries if not query.answer), queries[0].key)
            raise DataError(f"sample {lacking!r}: {self.name} needs an answer, and the question has none")
        return self.model.answer_logits(batch)

    def _first_tokens(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        found = {id(query): self._first_token_pair(query) for query in {id(query): query for query in queries}.values()}
        answers, others = zip(*(found[id(query)] for query in queries), strict=True)
        return torch.tensor(answers), torch.tensor(others)

    def _first_token_pair(self, query: Query) -> tuple[int, int]:
        if not query.other:
            raise DataError(f"sample {query.key!r}: logit_difference needs a second answer beside {query.answer!r}")
        answer, other = (self.model.answer_ids(text)[0] for text in (query.answer, query.other))
        if answer == other:
            raise DataError(
                f"sample {query.key!r}: {query.answer!r} and {query.other!r} begin with the same token, so their "
                "logit difference is always 0; take log_probability"
            )
        return answer, other


class CosineReadout(Readout):
    """Cosine of a dual encoder's image and text embeddings."""

    name = "cosine"

    def __call__(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        image_BE, text_BE = self.model.embeddings(self.model(**batch))
        return (image_BE * text_BE).sum(dim=1)

    def correct(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """Of the batch's texts, the image is nearest to its own (or to an equal one)."""
        similarity_BB = self.model.similarity(batch)
        return similarity_BB.diagonal() >= similarity_BB.amax(dim=1) - TIE


class DenoisingReadout(Readout):
    """How well a diffusion model denoises the image under its text: minus the mean squared error of the prediction."""

    name = "denoising"

    def __call__(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        return -self.model.denoising_error(batch)

    def correct(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """The text helps: without it the error is larger."""
        return self.model.denoising_error(batch) < self.model.denoising_error(self.model.without_text(batch))


_OF_KIND: dict[str, type[CosineReadout] | type[DenoisingReadout]] = {
    "dual_encoder": CosineReadout, "diffusion": DenoisingReadout,
}  # fmt: skip
"""Kinds of model that have one readout only."""


def make_readout(model: MultimodalModel, name: str, default: str) -> Readout:
    """The readout called `name`; `auto` is `default`, or the only one of the model's kind.

    Raises:
        ConfigError: a readout of another kind of model.
    """
    only = _OF_KIND.get(model.kind)
    valid = ANSWER_READOUTS if only is None else (only.name,)
    if name == "auto":
        name = default if only is None else only.name
    if name not in valid:
        kind = model.kind.replace("_", " ")
        raise ConfigError(f"readout={name} does not fit {model.spec.name}, a {kind} model; valid: {', '.join(valid)}")
    return AnswerReadout(model, name) if only is None else only(model)


def collate_queries(model: MultimodalModel, queries: Sequence[Query]) -> Batch:
    """One batch of queries, their answers teacher-forced."""
    samples, texts = [query.sample for query in queries], [query.text for query in queries]
    answers = [query.answer for query in queries]
    return model.collate(samples, texts, answers if any(answers) else None)


def batches(
    model: MultimodalModel, queries: Sequence[Query], size: int
) -> Iterator[tuple[Batch, Sequence[Query]]]:
    """Queries in their order, `size` at a time, each with its batch."""
    for start in range(0, len(queries), size):
        some = queries[start : start + size]
        yield collate_queries(model, some), some
