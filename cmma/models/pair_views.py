"""Records of models with two towers: views `[h_v ; h_t]` of an image–text pair at equal relative depth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cmma.modality import Modality
from cmma.models.base import Records
from cmma.models.sites import RecordSite

TOWERS = (("vision", Modality.VISUAL), ("text", Modality.TEXTUAL))


def pair_sites(
    layer: int, n_layers: int, depths: Mapping[str, int], widths: Mapping[str, int]
) -> tuple[RecordSite, ...]:
    """The residual streams of the vision and the text tower, in this order, at relative depth (layer + 1) / n_layers.

    Args:
        depths, widths: number of blocks and width of either tower.
    """
    places, start = [], 0
    for tower, modality in TOWERS:
        block = -(-(layer + 1) * depths[tower] // n_layers) - 1
        places.append(RecordSite(f"{tower}.layers.{block}.resid_post", modality, start, widths[tower]))
        start += widths[tower]
    return tuple(places)


def pair_views(
    image_BPV: Tensor, text_BTW: Tensor, text_modality_BT: Tensor, pooled_B: Tensor, summary_BV: Tensor | None = None
) -> Records:
    """Visual views of all image tokens, textual views of all text tokens, and one joint view `[CLS ; pooled token]`.

    Each view fills its own half of the record vector and leaves the other zero; S = P + T + 1.

    Args:
        text_modality_BT: modality codes of the text tokens.
        pooled_B: the text token that sums the text up.
        summary_BV: what sums the image up; None = its first token, CLS.
    """
    (rows, patches, width), length = image_BPV.shape, text_BTW.shape[1]
    vectors_BSD = image_BPV.new_zeros(rows, patches + length + 1, width + text_BTW.shape[2])
    vectors_BSD[:, :patches, :width] = image_BPV
    vectors_BSD[:, patches:-1, width:] = text_BTW
    vectors_BSD[:, -1, :width] = image_BPV[:, 0] if summary_BV is None else summary_BV
    vectors_BSD[:, -1, width:] = text_BTW[torch.arange(rows, device=text_BTW.device), pooled_B]

    visual_BP = text_modality_BT.new_full((rows, patches), int(Modality.VISUAL))
    joint_B1 = text_modality_BT.new_full((rows, 1), int(Modality.JOINT))
    modality_BS = torch.cat([visual_BP, text_modality_BT, joint_B1], dim=1)
    position_S = torch.cat([torch.arange(patches), torch.arange(length), torch.tensor([-1])]).to(image_BPV.device)
    return Records(vectors_BSD, modality_BS, position_S.expand(rows, -1))
