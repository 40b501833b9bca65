"""Run only what lies above a layer: its output is given, so nothing below it needs to be computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cmma.hooks.edit import TokenEdit
from cmma.hooks.streams import splice
from cmma.hooks.trace import Trace
from cmma.models.base import Batch, MultimodalModel
from cmma.models.sites import UnknownSite

BLOCK = re.compile(r"^(?P<tower>.*\.layers\.)(?P<layer>\d+)\.resid_post$")
"""Sites where a pass can start: the outputs of numbered blocks."""

AGREE = 1e-4
"""Largest difference of a resumed from a whole pass, relative to the readout; float32 rounding is about 1e-6."""


def can_resume(model: MultimodalModel, layer: int) -> bool:
    """Whether passes can start at the records of `layer`, however these are edited.

    They must be outputs of numbered blocks, and no stream may read another one below the layer: where the question
    encoder reads the finished image, an edit of the image changes also what the encoder holds at the layer.
    """
    return model.streams_apart and all(BLOCK.match(place.site) for place in model.record_sites(layer))


@contextmanager
def resumed(model: MultimodalModel, streams: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, forward passes start at the outputs of blocks, with `streams[site]` [R, S, D].

    The blocks below pass their input on untouched and the block itself returns the given stream; embeddings, masks
    and position encodings are the model's own. Exact for a stack of blocks that hand on one tensor.

    Raises:
        UnknownSite: a site that is not the output of a numbered block.
    """
    with ExitStack() as stack:
        for site, stream_RSD in streams.items():
            block = BLOCK.match(site)
            if block is None:
                raise UnknownSite(f"{model.spec.name}: passes resume at the output of a block, which {site!r} is not")
            for below in range(int(block["layer"])):
                module = model.site(f"{block['tower']}{below}.resid_post").module
                stack.enter_context(replaced_forward(module, _pass_on))
            stack.enter_context(replaced_forward(model.site(site).module, lambda *_, given=stream_RSD, **__: given))
        yield


def inputs_above(model: MultimodalModel, layer: int, batch: Batch) -> Batch:
    """The inputs that still matter above `layer`: with one stream, only those that run along it ([B, S]).

    The image of a LLaVA is in the stream already, so its vision tower is skipped. With two streams every input is kept.
    """
    if len(model.record_sites(0)) > 1:  # as in every layer
        return batch
    length = model.token_modality(batch).shape
    kept = {name: value for name, value in batch.items() if value.shape == length}
    return Batch(kept, batch.prompt_end, batch.answer_mask)


class EditedPasses:
    """Passes of one batch with the records of a layer edited; the layers below run once, not once per edit::

        passes = EditedPasses(model, layer, batch, lambda batch: readout(batch, queries))
        change_B = passes(sae.edit(ablate=[12])) - passes.clean_B

    Attributes:
        clean_B: scores of the unedited pass.
        resumes: whether passes start at the layer. Where a resumed clean pass does not reproduce the whole one, every
            pass is whole: slower, equally exact.
    """

    @torch.no_grad()
    def __init__(self, model: MultimodalModel, layer: int, batch: Batch, score: Callable[[Batch], Tensor]) -> None:
        self._model, self._layer, self._score = model, layer, score
        self._whole, self._above, self.resumes = batch, batch, False
        with Trace(model, [place.site for place in model.record_sites(layer)]) as acts:
            self.clean_B = score(batch)
        self._streams = {site: acts[site] for site in acts}
        if can_resume(model, layer):
            self._above, self.resumes = inputs_above(model, layer, batch), True
            self.resumes = bool((self() - self.clean_B).abs().max() <= AGREE * self.clean_B.abs().max())

    @torch.no_grad()
    def __call__(self, edit: TokenEdit | None = None) -> Tensor:
        """Scores [B] of a pass under `edit`."""
        under = nullcontext() if edit is None else splice(self._model, self._layer, edit)
        if not self.resumes:
            with under:
                return self._score(self._whole)
        with resumed(self._model, self._streams), under:
            return self._score(self._above)


def other_tops(model: MultimodalModel, stream: str) -> list[str]:
    """Outputs of the towers that nothing in `stream` can reach, such as the other tower of a dual encoder."""
    towers = tuple(f"{tower}.layers." for tower in model.unreached.get(stream, ()))
    top: dict[str, tuple[int, str]] = {}
    for name in model.site_names():
        if (match := BLOCK.match(name)) and match["tower"] in towers:
            top[match["tower"]] = max(top.get(match["tower"], (-1, "")), (int(match["layer"]), name))
    return [name for _, name in top.values()]


def _pass_on(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


@contextmanager
def replaced_forward(module: nn.Module, replacement: Any) -> Iterator[None]:
    """Within the block, `replacement` computes what one module instance gives; its hooks stay in force."""
    module.forward = replacement
    try:
        yield
    finally:
        del module.forward
