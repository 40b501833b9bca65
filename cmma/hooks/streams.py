"""Apply an edit that is written on record vectors to the stream or streams that the records came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import Tensor

from cmma.hooks.edit import Edit, TokenEdit, Where
from cmma.models.base import MultimodalModel
from cmma.models.sites import RecordSite


@contextmanager
def splice(model: MultimodalModel, layer: int, edit: TokenEdit) -> Iterator[None]:
    """Edit the records of `layer` while the block runs.

    Where records are tokens of one stream, this is an Edit of its residual site. Where they are pair views
    `[h_v ; h_t]` (dual encoders), each tower's tokens are handed to the edit as single-modality views, the other half
    zero, and only their own half is written back.
    """
    width = model.record_width(layer)
    with ExitStack() as stack:
        for place in model.record_sites(layer):
            stack.enter_context(Edit(model, place.site, on_block(edit, place, width)))
        yield


def on_block(edit: TokenEdit, place: RecordSite, width: int) -> TokenEdit:
    """`edit` seen from one tower: lift its activations into record vectors and take its block back."""
    if place.width == width:
        return edit
    block = slice(place.start, place.start + place.width)

    def lifted(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        records_NR = acts_ND.new_zeros(len(acts_ND), width)
        records_NR[:, block] = acts_ND
        return edit.fn(records_NR, modality_N, where)[:, block]

    return replace(edit, fn=lifted)
