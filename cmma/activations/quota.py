"""Which tokens of a sample become records: a quota per modality, so that no modality drowns the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cmma.modality import Modality


def choose_records(
    modality_BS: Tensor, samples: Sequence[int], visual: int, textual: int, joint: bool, seed: int
) -> Tensor:
    """Mark the tokens that are kept.

    Each token draws a number from a generator that depends on (seed, sample) only, and the tokens with the smallest
    numbers of their modality are kept. Neither padding nor the other samples of a batch influence the choice.

    Args:
        modality_BS: int8 codes, DROPPED where there is no record.
        samples: index of each row's sample in the data set.
        visual, textual: largest number of records per sample and modality.
        joint: keep joint views.
        seed: of the draw.

    Returns:
        bool[B, S].
    """
    length = modality_BS.shape[1]
    draw_BS = torch.from_numpy(
        np.stack([np.random.Generator(np.random.Philox(key=[seed, sample])).random(length) for sample in samples])
    )
    modality_BS = modality_BS.cpu()
    kept_BS = torch.zeros_like(modality_BS, dtype=torch.bool)
    for code, quota in ((Modality.VISUAL, visual), (Modality.TEXTUAL, textual)):
        candidate_BS = modality_BS == code
        rank_BS = draw_BS.masked_fill(~candidate_BS, torch.inf).argsort(1).argsort(1)
        kept_BS |= candidate_BS & (rank_BS < quota)
    if joint:
        kept_BS |= modality_BS == Modality.JOINT
    return kept_BS
