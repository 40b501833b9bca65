"""Per-modality standardisation of records: each modality has its own mean and one scalar scale per block.

Without it the large norms of image tokens take the dictionary over, and a mean that differs between modalities is
learnt as a feature (`docs/paper.md`, Records).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.records import ActivationReader

N_MODALITIES = 3
"""Rows of the statistics: visual, textual, joint."""


class Standardiser(nn.Module):
    """h = (x − mean[m]) / scale[m], and back.

    A scale of zero marks an absent coordinate: it is standardised to 0 and restored as `mean` (which is 0 there).
    Records of unknown modality (None, or code −1) use row JOINT: pooled statistics for one block, both halves for two.

    Args:
        mean_MD: [3, d] means in the model's units, row = modality code.
        scale_MD: [3, d] scales, constant within a block.
        blocks: widths of the record's parts: (d,) or (d_visual, d_textual).
    """

    mean_MD: Tensor
    scale_MD: Tensor

    def __init__(self, mean_MD: Tensor, scale_MD: Tensor, blocks: Sequence[int]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        if mean_MD.shape != (N_MODALITIES, sum(blocks)) or scale_MD.shape != mean_MD.shape:
            raise DataError(f"standardiser: mean {tuple(mean_MD.shape)} and scale {tuple(scale_MD.shape)} should both "
                            f"be {(N_MODALITIES, sum(blocks))}")
        self.register_buffer("mean_MD", mean_MD.float())
        self.register_buffer("scale_MD", scale_MD.float())

    @classmethod
    def identity(cls, blocks: Sequence[int]) -> Standardiser:
        """Mean 0 and scale 1; absent halves stay absent."""
        present_MD = _present(blocks)
        return cls(torch.zeros_like(present_MD), present_MD, blocks)

    @classmethod
    def fit(
        cls, reader: ActivationReader, blocks: Sequence[int] | None = None, max_records: int = 2**18, seed: int = 0
    ) -> Standardiser:
        """Estimate from a sample of the training records, in two streaming passes with float64 sums.

        Afterwards E‖h_block‖ = √d_block for each present block, so E‖h‖ ≈ √d for a whole record.

        Args:
            reader: where the records come from.
            blocks: widths of the record's parts; the reader's own when None.
            max_records: how many records are looked at, at most.
            seed: of the sample.

        Raises:
            DataError: non-finite activations, or a block that is constant.
        """
        blocks = tuple(blocks or reader.blocks)
        batch = min(4096, reader.n_records)
        n_batches = -(-min(max_records, reader.n_records) // batch)

        def sample():
            return islice(reader.batches(batch, seed), n_batches)

        sum_MD = torch.zeros(N_MODALITIES, reader.width, dtype=torch.float64)
        count_M = torch.zeros(N_MODALITIES, dtype=torch.float64)
        for records in sample():
            if not records.acts_BD.isfinite().all():
                raise DataError("activations hold values that are not finite; cache them again (bf16 avoids overflow)")
            one_hot_BM = modality_one_hot(records.modality_B, torch.float64)
            sum_MD += one_hot_BM.T @ records.acts_BD.double()
            count_M += one_hot_BM.sum(0)
        mean_MD = _rows(sum_MD, count_M, blocks)

        norm_MB = torch.zeros(N_MODALITIES, len(blocks), dtype=torch.float64)
        for records in sample():
            centred_BD = records.acts_BD.double() - mean_MD[modality_row(records.modality_B)]
            norms_BB = torch.stack([part.norm(dim=1) for part in centred_BD.split(blocks, dim=1)], dim=1)
            norm_MB += modality_one_hot(records.modality_B, torch.float64).T @ norms_BB
        norm_MD = _rows(torch.repeat_interleave(norm_MB, torch.tensor(blocks), dim=1), count_M, blocks)
        scale_MD = norm_MD / torch.repeat_interleave(torch.tensor(blocks).double().sqrt(), torch.tensor(blocks))
        present_MD = _present(blocks).bool()
        if (scale_MD[present_MD] == 0).any():
            raise DataError("all cached activations of a modality are the same vector; there is nothing to decompose")
        return cls(mean_MD, scale_MD * present_MD, blocks)

    def standardise(self, acts_BD: Tensor, modality_B: Tensor | None = None) -> Tensor:
        """Model units → standardised units. Shapes [B, d] → [B, d]."""
        row = modality_row(modality_B)
        inverse_MD = torch.where(self.scale_MD > 0, self.scale_MD.reciprocal(), torch.zeros_like(self.scale_MD))
        return (acts_BD - self.mean_MD[row]) * inverse_MD[row]

    def restore(self, standard_BD: Tensor, modality_B: Tensor | None = None) -> Tensor:
        """Standardised units → model units: the inverse of `standardise` on present coordinates."""
        row = modality_row(modality_B)
        return standard_BD * self.scale_MD[row] + self.mean_MD[row]

    def restore_difference(self, standard_BD: Tensor, modality_B: Tensor | None = None) -> Tensor:
        """A difference of two standardised vectors in model units: the mean cancels."""
        return standard_BD * self.scale_MD[modality_row(modality_B)]

    def outlier_ratio(self) -> dict[str, float]:
        """‖mean‖ / (scale·√d) per modality: large values foretell dead latents without centring."""
        size_M = self.scale_MD.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        ratio_M = self.mean_MD.norm(dim=1) / size_M
        return {m.name.lower(): float(ratio_M[m]) for m in (Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT)}


def modality_one_hot(modality_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B] codes → [B, 3] indicators; a dropped record (code −1) is a row of zeros."""
    code_M = torch.arange(N_MODALITIES, device=modality_B.device, dtype=modality_B.dtype)
    return (modality_B[:, None] == code_M).to(dtype)


def modality_row(modality_B: Tensor | None) -> Tensor | int:
    """Row of a table by modality for each record; that of JOINT where the modality is not known."""
    return int(Modality.JOINT) if modality_B is None else modality_B.long()


def _present(blocks: Sequence[int]) -> Tensor:
    """[3, d]: 1 where a modality has a block. One block belongs to all; of two, the first is visual."""
    present_MD = torch.ones(N_MODALITIES, sum(blocks))
    if len(blocks) == 2:
        present_MD[Modality.VISUAL, blocks[0]:] = 0
        present_MD[Modality.TEXTUAL, : blocks[0]] = 0
    return present_MD


def _rows(sum_MD: Tensor, count_M: Tensor, blocks: Sequence[int]) -> Tensor:
    """Means per modality from sums and counts; the JOINT row is made of the other two.

    One block: JOINT is the average over all records (it stands for "unknown"), also the stand-in for a modality
    without records. Two blocks: the visual half is averaged over the records that have it, and likewise the textual
    half, so that a joint view is exactly the sum of its two single views.
    """
    present_MD = _present(blocks).double()
    if len(blocks) == 1:
        pooled_D = sum_MD.sum(0) / count_M.sum()
        mean_MD = torch.where(count_M[:, None] > 0, sum_MD / count_M.clamp_min(1)[:, None], pooled_D)
        mean_MD[Modality.JOINT] = pooled_D
        return mean_MD
    available_D = (present_MD * count_M[:, None]).sum(0)
    if (available_D == 0).any():
        raise DataError("a half of the pair records has no training records at all; cache both modalities")
    return present_MD * ((present_MD * sum_MD).sum(0) / available_D)
