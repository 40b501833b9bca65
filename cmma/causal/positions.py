"""Position groups: what a column of a causal trace is.

Groups have the same name in every case, so that traces can be averaged over samples: patches by what they show,
prompt tokens by their distance from the last one.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmma.causal.patching import Positions, Run
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.models.base import MultimodalModel

LAST, CLS, START, EVERYTHING, CONSTRAINT = "last", "CLS", "start", "everything", "constraint"


def position_groups(
    model: MultimodalModel, clean: Run, corrupt: Run, stream: str, image: str = "objects", text: str = "each",
    layer: int | None = None,
) -> Positions:
    """Groups of one case in one stream.

    Args:
        stream: one of `model.streams`.
        image: `objects`, `each`, `whole` or `none`; `objects` falls back to `whole` where no mask is known.
        text: `each`, `whole`, `constraint` or `none`. The last token (of the prompt, or EOT) and CLS are always groups
            of their own. `constraint` is the words in which the two runs differ, `other words` the rest.
            An answer decoder has one group, `start`: the position that decides the first word.
        layer: whose grid of patches it is, where layers differ (a U-Net's).

    Raises:
        ConfigError: a stream that the model does not have, or that has no groups (LLaVA's vision tower).
    """
    if stream not in model.streams:
        raise ConfigError(f"trace.stream={stream}: {model.spec.name} has position groups in {', '.join(model.streams)}")
    if stream == "decoder":
        return {START: torch.tensor([0])}
    groups: dict[str, Tensor] = {}
    if stream != "text" and image != "none":
        patches_P = model.image_positions(clean.batch, layer)[0].cpu()
        grid = model.image_grid(clean.batch, layer)
        for name, index in patch_groups(clean.query.sample, corrupt.query.sample, grid, image).items():
            groups[name] = patches_P[torch.as_tensor(index)]
    if stream == "vision":
        groups[CLS] = model.pooled_position(clean.batch, Modality.VISUAL).cpu()
    elif stream != "unet":
        pooled = int(model.pooled_position(clean.batch, Modality.TEXTUAL)[0])
        end = pooled if clean.batch.prompt_end is None else int(clean.batch.prompt_end[0])
        modality_S = model.token_modality(clean.batch)[0].cpu()
        if pooled != end:  # a question encoder sums the question up at its first token
            groups[CLS] = torch.tensor([pooled])
            modality_S[pooled] = Modality.DROPPED
        if text == CONSTRAINT:
            groups |= constraint_groups(modality_S, end, differing_tokens(clean, corrupt, len(modality_S)))
        else:
            groups |= token_groups(modality_S, end, text)
    return groups


def token_groups(modality_S: Tensor, end: int, how: str) -> dict[str, Tensor]:
    """Prompt tokens: `last`, and before it `last-1`, `last-2`, … or together as `question`.

    Args:
        modality_S: modality code of every position; tokens before the image (system prompt) are not grouped.
        end: position of the last prompt token.
    """
    before = words_before(modality_S, end)
    groups: dict[str, Tensor] = {}
    if how == "whole" and before:
        groups["question"] = torch.tensor(before)
    if how == "each":
        groups = {f"{LAST}-{end - position}": torch.tensor([position]) for position in before}
    return groups | {LAST: torch.tensor([end])}


def constraint_groups(modality_S: Tensor, end: int, differs_S: Tensor) -> dict[str, Tensor]:
    """Prompt tokens: `constraint`, those that differ between two runs; `other words`; `last`."""
    before = torch.tensor(words_before(modality_S, end), dtype=torch.long)
    parts = {CONSTRAINT: before[differs_S[before]], "other words": before[~differs_S[before]]}
    return {name: where for name, where in parts.items() if len(where)} | {LAST: torch.tensor([end])}


def differing_tokens(clean: Run, corrupt: Run, length: int) -> Tensor:
    """bool [length]: positions of the text stream at which the inputs of two runs differ."""
    differs_S = torch.zeros(length, dtype=torch.bool)
    for name, ids in clean.batch.items():
        if ids.shape == (1, length):
            differs_S |= (ids != corrupt.batch[name])[0].cpu()
    return differs_S


def words_before(modality_S: Tensor, end: int) -> list[int]:
    """Positions of the text after the image (or from the start), before the last prompt token."""
    visual = torch.nonzero(modality_S == Modality.VISUAL).flatten()
    start = int(visual[-1]) + 1 if len(visual) else 0
    return [position for position in range(start, end) if modality_S[position] == Modality.TEXTUAL]


def patch_groups(clean: Sample, corrupt: Sample, grid: tuple[int, int], how: str) -> dict[str, np.ndarray]:
    """Indices of patches, row by row, per group.

    `objects` names the patches of each object, and the background. In a pair of images it is the patches of what
    differs (on either image: an object that moved is in two places), of the other objects, and the background.
    """
    rows, columns = grid
    if how == "each":
        return {f"patch {index // columns},{index % columns}": np.array([index]) for index in range(rows * columns)}
    if how == "whole" or clean.mask is None or corrupt.mask is None:
        return {"image": np.arange(rows * columns)}

    if clean.key == corrupt.key:
        members = {f"object {i + 1}": object_patches(clean, [i], grid) for i in range(len(clean.objects))}
    else:
        changed, same = np.zeros(rows * columns, dtype=bool), np.zeros(rows * columns, dtype=bool)
        for sample, other in ((clean, corrupt), (corrupt, clean)):
            differs = [entry not in other.objects for entry in sample.objects]
            changed |= object_patches(sample, np.flatnonzero(differs), grid)
            same |= object_patches(sample, np.flatnonzero(np.logical_not(differs)), grid)
        members = {"changed object": changed, "other objects": same & ~changed}
    members["background"] = ~np.any(list(members.values()), axis=0)
    return {name: np.flatnonzero(member) for name, member in members.items() if member.any()}


def object_patches(sample: Sample, objects: list[int] | np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool [rows · columns]: patches in which any pixel of the objects lies.

    The mask goes through the geometry of the usual preprocessing: shorter side to the grid, centre crop.
    """
    rows, columns = grid
    assert sample.mask is not None
    shown = np.isin(sample.mask, [index + 1 for index in objects])
    height, width = shown.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(shown[top : top + side, left : left + side].astype(np.uint8) * 255)
    cells = np.asarray(square.convert("F").resize((columns, rows), Image.Resampling.BOX))
    return (cells > 0).flatten()
