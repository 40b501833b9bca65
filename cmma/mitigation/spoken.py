"""Objects that a model names in its own captions: which of them are there, and where each mention is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.evaluation.scene_captions import visible_shapes
from cmma.evaluation.vocabulary import Vocabulary
from cmma.models.base import Batch, MultimodalModel


@dataclass(frozen=True)
class SpokenMention(Query):
    """The first mention of an object in a caption that the model wrote; the answer ends with its word.

    Attributes:
        node: the object.
        token: which token of the answer begins its word.
        hallucinated: the image does not show it.
    """

    node: str = ""
    token: int = 0
    hallucinated: bool = False


def spoken_mentions(
    model: MultimodalModel, samples: Sequence[Sample], captions: Sequence[str], vocabulary: Vocabulary
) -> list[SpokenMention]:
    """The first mention of every object in every caption, in order.

    What is said of an object once it was named follows from the first mention, not from the image.
    """
    found = []
    for sample, caption in zip(samples, captions, strict=True):
        truth = vocabulary.truth(visible_shapes(sample))
        named: set[str] = set()
        for (start, end), mention in vocabulary.located(caption).items():
            if mention.node in named:
                continue
            named.add(mention.node)
            answer = caption[:end]
            before = zip(model.answer_ids(caption[:start].rstrip()), model.answer_ids(answer), strict=False)
            token = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], before))
            found.append(SpokenMention(
                sample, model.spec.prompt, answer, node=mention.node, token=token,
                hallucinated=mention.node not in truth,
            ))  # fmt: skip
    return found


def first_of_each_image(mentions: Sequence[SpokenMention]) -> list[SpokenMention]:
    """One mention per image, so that images are independent units.

    The first hallucinated one where there is one; else the first of an object that is hallucinated in other images, so
    that what tells them apart is not the object's name; else the first.
    """
    nodes = {mention.node for mention in mentions if mention.hallucinated}
    best: dict[str, tuple[int, SpokenMention]] = {}
    for mention in mentions:
        rank = 0 if mention.hallucinated else 1 if mention.node in nodes else 2
        if mention.key not in best or rank < best[mention.key][0]:
            best[mention.key] = rank, mention
    return [mention for _, mention in best.values()]


class MentionReadout(Readout):
    """Logit of a mention's word less that of the best word for another object, where the word is decided."""

    name = "margin of the object word"

    def __init__(self, model: MultimodalModel, vocabulary: Vocabulary) -> None:
        super().__init__(model)
        self._tokens: dict[str, set[int]] = {}
        for word, node in vocabulary.node_of.items():
            self._tokens.setdefault(node, set()).add(model.answer_ids(word)[0])

    def __call__(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        logits_BCV, ids_BC, answer_BC = self.model.answer_logits(batch)
        rows = torch.arange(len(queries), device=logits_BCV.device)
        column_B = word_columns(answer_BC, queries)
        logits_BV = logits_BCV[rows, column_B]
        said_B = ids_BC[rows, column_B]
        return logits_BV[rows, said_B] - logits_BV.masked_fill(~self._rivals(queries, logits_BV), -torch.inf).amax(1)

    def correct(self, batch: Batch, queries: Sequence[Query]) -> Tensor:
        """The word is what the model says."""
        return self(batch, queries) > 0

    def _rivals(self, queries: Sequence[Query], logits_BV: Tensor) -> Tensor:
        """bool[B, V]: first tokens of words for other objects."""
        rival_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        for row, query in enumerate(queries):
            node = query.node if isinstance(query, SpokenMention) else ""
            own = self._tokens[node]
            others = set().union(*self._tokens.values()) - own
            if not others:
                raise DataError(f"no word for another object begins otherwise than {node!r}; the margin needs a rival")
            rival_BV[row, sorted(others)] = True
        return rival_BV


def word_columns(answer_BS: Tensor, queries: Sequence[Query]) -> Tensor:
    """int64[B]: the column in which each mention's word begins, of the mask of answer tokens."""
    offset = [query.token if isinstance(query, SpokenMention) else 0 for query in queries]
    return answer_BS.int().argmax(dim=1) + torch.tensor(offset, device=answer_BS.device)
