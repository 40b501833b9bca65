"""One pass for many copies of a run that differ from it only above some layer: each joins where it begins to differ.

Copies of a run that are changed at different layers of one tower all repeat what the run did below. Here the model is
called with one row, its blocks are skipped until the first copy joins, and the batch grows from block to block. In a
causal tower the positions before the first change are left out too: their keys and values are the run's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from cmma.hooks.resume import replaced_forward
from cmma.models.base import Batch, MultimodalModel

Prefix = list[tuple[Tensor, Tensor]]
"""Keys and values per block, Float[rows, heads, positions, head width] each."""


def entering(tower: str, block: int) -> str:
    """The site that holds the stream as it enters a block: the output of the block below, or block 0's input."""
    return f"{tower}{block - 1}.resid_post" if block else f"{tower}0.resid_pre"


def blocks_of(model: MultimodalModel, tower: str) -> list[nn.Module]:
    """The numbered blocks of a tower ("language.layers."), in their order."""
    names = (f"{tower}{number}.resid_post" for number in range(len(model.site_names())))
    known = set(model.site_names())
    return [model.site(name).module for name in names if name in known]


@contextmanager
def joined(
    model: MultimodalModel, tower: str, streams: Mapping[int, Tensor], batch: Batch,
    prefix: tuple[Prefix, Sequence[int]] | None = None,
) -> Iterator[None]:
    """Within the block, passes start with one row, and rows join before the blocks of `tower`.

    Inside the tower, row r of an activation is the r-th that joined: rows are numbered by block, and within a block as
    given. Everything above the tower has all rows.

    Args:
        streams: block → Float[rows that join before it, S, D], their streams there; the number of blocks stands for
            the end of the tower.
        batch: names of the model's inputs are taken from it; of each the first row is used.
        prefix: keys and values of the positions before those of the pass, and which of their rows each row of the
            pass follows. What is read are then the columns from the end of the prompt on.
    """
    blocks = blocks_of(model, tower)
    below, last = 0, len(blocks) - 1
    with ExitStack() as stack:
        cache = None if prefix is None else Cache(layers=[_Kept(*kept, prefix[1]) for kept in prefix[0]])
        length = None if prefix is None else next(iter(streams.values())).shape[1]
        stack.enter_context(_one_row(model, tuple(batch), cache, length))
        for number, block in enumerate(blocks):
            joining, ending = streams.get(number), streams.get(len(blocks)) if number == last else None
            active = below + (0 if joining is None else len(joining))
            stack.enter_context(replaced_forward(block, _grown(block.forward, below, joining, active, ending)))
            below = active
        if prefix is not None and (site := f"{tower}{last}.mlp_out") in model.site_names():
            mlp = model.site(site).module
            stack.enter_context(replaced_forward(mlp, _from_column(mlp.forward, int(batch.prompt_end.min()))))
        yield


@contextmanager
def keeping_prefix(model: MultimodalModel) -> Iterator[Prefix]:
    """Within the block, one pass leaves the keys and values of all its positions in the list that is given."""
    cache, kept = DynamicCache(), Prefix()
    with _one_row(model, (), cache):
        yield kept
    layers: Any = cache.layers
    kept += [(layer.keys, layer.values) for layer in layers]


def _grown(block: Any, below: int, joining: Tensor | None, active: int, ending: Tensor | None) -> Any:
    """A block's computation on the rows that are there and those that join; rows that join after it follow."""

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if joining is not None:
            hidden = torch.cat([hidden[:below], joining.to(hidden.device)])
        if active:
            hidden = block(hidden, *args, **kwargs)
        return hidden if ending is None else torch.cat([hidden[:active], ending.to(hidden.device)])

    return forward


def _from_column(mlp: Any, first: int) -> Any:
    """An MLP on the columns from `first` on alone: of the last block nobody reads the others."""

    def forward(hidden: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        out[:, first:] = mlp(hidden[:, first:])
        return out

    return forward


@contextmanager
def _one_row(
    model: MultimodalModel, inputs: Sequence[str], cache: Cache | None, length: int | None = None
) -> Iterator[None]:
    """Call the model with the first row of its inputs, and with a cache and as many columns as the streams have."""

    def cut(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept = {name: value[:1] if name in inputs else value for name, value in given.items()}
        if length is not None:
            kept |= {name: kept[name][:, :length] for name in inputs}
        return args, kept if cache is None else {**kept, "past_key_values": cache, "use_cache": True}

    handle = model.module.register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Kept(DynamicLayer):
    """Keys and values of earlier positions; of a pass nothing is added to them."""

    def __init__(self, keys: Tensor, values: Tensor, of_row: Sequence[int]) -> None:
        super().__init__()
        self.keys: Any = keys
        self.values: Any = values
        self.of_row = torch.tensor(of_row, device=keys.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Those of the rows that have joined, and the new ones after them."""
        of_row = self.of_row[: len(key_states)]
        keys, values = (
            torch.cat([kept.index_select(0, of_row), new], dim=-2)  # indexing is four times slower
            for kept, new in ((self.keys, key_states), (self.values, value_states))
        )
        return keys, values
