"""What a layer's states would say if the network ended there: softmax(output embedding · final norm · h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmma.errors import ConfigError, DataError
from cmma.hooks import Trace
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel

_TOKENS_AT_ONCE = 2048  # × a vocabulary of 32,000 in float32: 0.26 GB


def lens_sites(model: MultimodalModel, layers: Sequence[int] | None = None) -> list[str]:
    """The residual stream after each layer of the stream that writes the answer; None: every layer.

    Raises:
        ConfigError: a model that writes no words, or a layer that it does not have.
    """
    if not model.answer_stream:
        raise ConfigError(f"the logit lens reads states out as words, and {model.spec.name} writes none")
    prefix = f"{model.answer_stream}.layers."
    depth = sum(name.startswith(prefix) and name.endswith(".resid_post") for name in model.site_names())
    chosen = range(depth) if layers is None else layers
    if wrong := [layer for layer in chosen if not 0 <= layer < depth]:
        raise ConfigError(f"trace.layers holds {wrong[0]}; {prefix}* of {model.spec.name} are 0 to {depth - 1}")
    return [f"{prefix}{layer}.resid_post" for layer in chosen]


def first_tokens(model: MultimodalModel, words: Sequence[str]) -> Tensor:
    """int64 [W]: the token with which each word begins as an answer.

    Raises:
        DataError: two words begin alike, so that the lens cannot tell them apart.
    """
    ids = [model.answer_ids(word)[0] for word in words]
    if twice := [word for word, token in zip(words, ids, strict=True) if ids.count(token) > 1]:
        raise DataError(f"{' and '.join(map(repr, twice[:2]))} begin with the same token; the lens needs other words")
    return torch.tensor(ids, device=model.device)


class Lens(NamedTuple):
    """What the lens says of some tokens at every layer and position of `model.answer_stream`.

    Attributes:
        probability_BLSW: float32.
        rank_BLSW: int64, how many tokens of the vocabulary are likelier; 0 = it would be said.
    """

    probability_BLSW: Tensor
    rank_BLSW: Tensor


@torch.no_grad()
def read_lens(
    model: MultimodalModel, batch: Batch, tokens: Tensor, layers: Sequence[int] | None = None
) -> Lens:
    """Probability and rank of some tokens of the vocabulary.

    Args:
        tokens: [W], the same for every row, or [B, W].
    """
    sites = lens_sites(model, layers)
    with Trace(model, sites, stop=True) as acts:
        model(**batch)
    rows, length = acts[sites[0]].shape[:2]
    tokens_BW = tokens.expand(rows, -1) if tokens.ndim == 1 else tokens
    token_NW = tokens_BW.repeat_interleave(length, dim=0)
    reads = zip(*(_read(model, acts[site].flatten(0, 1), token_NW) for site in sites), strict=True)
    return Lens(*(torch.stack(read_L).unflatten(1, (rows, length)).transpose(0, 1) for read_L in reads))


def _read(model: MultimodalModel, states_ND: Tensor, token_NW: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and ranks [N, W]; the whole vocabulary is held for a few states at a time."""
    found = []
    for some_ND, token in zip(states_ND.split(_TOKENS_AT_ONCE), token_NW.split(_TOKENS_AT_ONCE), strict=True):
        logits_NV = model.logit_lens(some_ND).float()
        own_NW = logits_NV.gather(1, token)
        ranks = [(logits_NV > own_N1).sum(dim=1) for own_N1 in own_NW.split(1, dim=1)]
        found.append((logits_NV.softmax(dim=-1).gather(1, token), torch.stack(ranks, dim=1)))
    probabilities, ranks_NW = zip(*found, strict=True)
    return torch.cat(probabilities), torch.cat(ranks_NW)


def image_probabilities(
    model: MultimodalModel, batch: Batch, words: Sequence[str], layers: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Lens probability of the words' first tokens [B, L, S, W], 0 off the image, and bool [B, S]: the image tokens.

    Raises:
        ConfigError: the stream that writes the answer holds no image tokens.
        DataError: two words begin with the same token.
    """
    visual_BS = model.token_modality(batch) == Modality.VISUAL
    if model.answer_stream != model.streams[0] or not visual_BS.any():
        raise ConfigError(f"internal confidence is read at image tokens, which {model.spec.name} does not write with")
    probability_BLSW = read_lens(model, batch, first_tokens(model, words), layers).probability_BLSW
    return probability_BLSW.masked_fill(~visual_BS[:, None, :, None], 0), visual_BS


def internal_confidence(
    model: MultimodalModel, batch: Batch, words: Sequence[str], layers: Sequence[int] | None = None
) -> Tensor:
    """How much a model sees each word in an image: the largest lens probability over layers and image tokens.

    Jiang et al. 2024 (arXiv 2410.02762), who take it for object names and read off hallucinated ones. A word of several
    tokens is represented by its first.

    Returns:
        Float32 [B, W], on the CPU.

    Raises:
        ConfigError: the stream that writes the answer holds no image tokens.
        DataError: two words begin with the same token.
    """
    return image_probabilities(model, batch, words, layers)[0].amax(dim=(1, 2)).cpu()
