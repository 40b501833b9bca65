"""Which readout measures an effect, and the rival answer that a logit difference needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cmma.causal.queries import Query
from cmma.causal.readout import Readout, batches, make_readout
from cmma.models.base import MultimodalModel


def prepare_readout(
    model: MultimodalModel, queries: Sequence[Query], name: str = "auto", batch_size: int = 64
) -> tuple[Readout, list[Query]]:
    """The readout called `name`, and the queries as it needs them.

    "auto" is the logit difference where every query has a rival, else the log-probability of the answer, which needs
    none; for dual encoders the cosine. The logit difference is preferred since it does not saturate where the model
    is sure, and saturation makes every pair of features look as if they interacted.
    """
    if model.kind == "generative" and name in ("auto", "logit_difference"):
        rivalled = with_rivals(model, queries, batch_size)
        if name == "logit_difference" or all(query.other for query in rivalled):
            return make_readout(model, "logit_difference", "logit_difference"), rivalled
    return make_readout(model, name, "log_probability"), list(queries)


@torch.no_grad()
def with_rivals(model: MultimodalModel, queries: Sequence[Query], batch_size: int = 64) -> list[Query]:
    """Queries with `other` filled in: of all answers in the list, the wrong one that the clean run likes best.

    The rival is fixed on the clean run, so that ablations move the readout and not its definition. Queries that have
    an `other` keep it; one whose answer begins like all others stays without.
    """
    candidates = {model.answer_ids(query.answer)[0]: query.answer for query in reversed(queries) if query.answer}
    tokens_C = torch.tensor(list(candidates), device=model.device)
    texts = list(candidates.values())
    rivalled = []
    for batch, some in batches(model, queries, batch_size):
        logits_BC = model.prompt_logits(batch)[:, tokens_C]
        for query, logits_C in zip(some, logits_BC, strict=True):
            is_other_C = tokens_C != (model.answer_ids(query.answer)[0] if query.answer else -1)
            if query.other or not query.answer or not is_other_C.any():
                rivalled.append(query)
                continue
            best = int(logits_C.masked_fill(~is_other_C, -torch.inf).argmax())
            rivalled.append(replace(query, other=texts[best]))
    return rivalled
