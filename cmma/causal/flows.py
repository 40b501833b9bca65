"""Groups of positions between which information flows, and the attention through which it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmma.causal.positions import CLS, LAST, START, object_patches
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel

IMAGE, OBJECTS, BACKGROUND, QUESTION = "image", "objects", "background", "question"
PARTS = (OBJECTS, BACKGROUND)
"""Groups inside the image: sources of flows, targets only where they are asked for."""

Groups = Mapping[str, Mapping[str, Tensor]]
"""Stream → name of a group → bool [B, S], its positions in every row."""


class Flow(NamedTuple):
    """Attention of the positions `target` to the positions `source`; `queries` and `keys` are their streams."""

    source: str
    target: str
    queries: str
    keys: str

    @property
    def name(self) -> str:
        return f"{self.source}->{self.target}"


def flow_groups(model: MultimodalModel, batch: Batch, samples: Sequence[Sample], lengths: Mapping[str, int]) -> Groups:
    """The groups of every stream of `lengths` (stream → positions in this batch).

    `image` are all image tokens (CLS too, where there is one); `objects` the patches that show a known object, and
    `background` the other patches: both are empty without a mask. `question` are the words after the image, up to
    `last`, the one that decides the answer (EOT of a dual encoder). A question that is encoded by itself is one group:
    the decoder, whose first position is `start`, reads all of it.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for stream, length in lengths.items():
        groups: dict[str, Tensor] = {}
        position_S = torch.arange(length, device=model.device)
        if stream == "decoder":
            groups[START] = (position_S == 0).expand(len(samples), -1)
        if stream == "vision":
            groups[IMAGE] = torch.ones(len(samples), length, dtype=torch.bool, device=model.device)
            groups |= _patches(model, batch, samples, length)
            groups[CLS] = position_S == model.pooled_position(batch, Modality.VISUAL)[:, None]
        if stream in ("language", "text"):
            modality_BS = model.token_modality(batch)
            visual_BS, question_BS = modality_BS == Modality.VISUAL, modality_BS == Modality.TEXTUAL
            if visual_BS.any():
                groups[IMAGE] = visual_BS
                groups |= _patches(model, batch, samples, length)
                question_BS &= position_S > (visual_BS * position_S).amax(dim=1, keepdim=True)
            if "decoder" in lengths:
                groups[QUESTION] = question_BS
            else:
                end_B = model.pooled_position(batch, Modality.TEXTUAL)
                groups[QUESTION] = question_BS & (position_S < end_B[:, None])
                groups[LAST] = position_S == end_B[:, None]
        found[stream] = groups
    return found


def _patches(model: MultimodalModel, batch: Batch, samples: Sequence[Sample], length: int) -> dict[str, Tensor]:
    """Patches with and without an object that the image shows."""
    patches_BP, grid = model.image_positions(batch), model.image_grid(batch)
    shown_BS = torch.zeros(len(samples), length, dtype=torch.bool, device=patches_BP.device)
    other_BS = shown_BS.clone()
    for row, sample in enumerate(samples):
        if sample.mask is not None:
            visible = [index for index, thing in enumerate(sample.objects) if thing.get("visible", True)]
            shown_P = torch.from_numpy(object_patches(sample, visible, grid)).to(patches_BP.device)
            shown_BS[row, patches_BP[row]], other_BS[row, patches_BP[row]] = shown_P, ~shown_P
    return {OBJECTS: shown_BS, BACKGROUND: other_BS}


def find_flows(model: MultimodalModel, groups: Groups, wanted: Sequence[str] = ()) -> list[Flow]:
    """Every flow that the model's attention allows, into whole groups; or those that are wanted, by name.

    Raises:
        ConfigError: a model whose attention takes no mask, or a flow that it does not have.
    """
    kinds = dict.fromkeys((each.row.queries, each.row.keys, each.row.causal) for each in model.attentions.values())
    if not kinds:
        raise ConfigError(f"trace.method=knockout masks attention, and that of {model.spec.name} takes no mask")
    possible = [
        Flow(source, target, queries, keys)
        for queries, keys, causal in kinds
        for target, target_BQ in groups[queries].items()
        for source, source_BK in groups[keys].items()
        if not causal or _ahead(source_BK, target_BQ)
    ]
    if not wanted:
        return [flow for flow in possible if flow.target not in PARTS]
    named = {flow.name: flow for flow in possible}
    if missing := [name for name in wanted if name not in named]:
        raise ConfigError(
            f"trace.knockout.flows: {model.spec.name} has no flow {missing[0]!r}; it has {', '.join(named)}"
        )
    return [named[name] for name in wanted]


def _ahead(source_BS: Tensor, target_BS: Tensor) -> bool:
    """Whether in some row a position of the target has one of the source at it or before it."""
    return bool((source_BS.int().cumsum(dim=1).bool() & target_BS).any())
