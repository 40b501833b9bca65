"""The dictionary's view of the activations at one layer: what each feature contributes to each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel
from cmma.models.sites import RecordSite
from cmma.sae.architectures.base import SparseAutoencoder

MODALITIES = (Modality.VISUAL, Modality.TEXTUAL)
_TOKENS_AT_ONCE = 4096  # × all latents of a 131,072-latent dictionary: 2 GB


@dataclass(frozen=True)
class Stream:
    """One record site seen through some features of a dictionary.

    Attributes:
        site: its name.
        acts_BSD: clean activations.
        latents_BSK: activations of the features; 0 at tokens that are not to be ablated.
        directions_MKD: what one unit of each feature adds at a visual and at a textual token, in the model's units.
        modality_BS: modality codes.
    """

    site: str
    acts_BSD: Tensor
    latents_BSK: Tensor
    directions_MKD: Tensor
    modality_BS: Tensor

    def ablated(self, rows_R: Tensor, off_RK: Tensor, start: int = 0) -> Tensor:
        """Activations of samples `rows_R` without the features `off_RK` (1 = off): h + decode(a′) − decode(a).

        Of the positions from `start` on: [R, S − start, D].
        """
        removed_RSK = self.latents_BSK[rows_R, start:] * off_RK[:, None]
        acts_RSD = self.acts_BSD[rows_R, start:]
        for modality, direction_KD in zip(MODALITIES, self.directions_MKD, strict=True):
            here_RS1 = (self.modality_BS[rows_R, start:] == modality)[..., None]
            acts_RSD = acts_RSD - ((removed_RSK * here_RS1) @ direction_KD).to(acts_RSD.dtype)
        return acts_RSD

    def along(self, rows_R: Tensor, gradient_RSD: Tensor) -> Tensor:
        """Σ_tokens a_k f_k · gradient, [R, K]: the inner product of each feature's part of the stream with it."""
        total_RK = 0
        for modality, direction_KD in zip(MODALITIES, self.directions_MKD, strict=True):
            here_RSD = gradient_RSD.float() * (self.modality_BS[rows_R] == modality)[..., None]
            total_RK = total_RK + (self.latents_BSK[rows_R] * (here_RSD @ direction_KD.T)).sum(dim=1)
        return torch.as_tensor(total_RK)

    @property
    def active_BK(self) -> Tensor:
        """bool: whether ablating the feature changes the sample's stream at all."""
        return (self.latents_BSK != 0).any(dim=1)


@torch.no_grad()
def read_streams(
    model: MultimodalModel,
    sae: SparseAutoencoder,
    layer: int,
    acts: Mapping[str, Tensor],
    batch: Batch,
    features: Sequence[int],
    tokens: str = "all",
) -> list[Stream]:
    """Encode the traced record sites of `layer`; one Stream per site.

    Args:
        acts: clean activations of `model.record_sites(layer)`.
        features: latents to keep.
        tokens: "all" records, only "visual" or only "textual" ones. Dropped tokens are never edited.
    """
    chosen = torch.as_tensor(list(features), device=model.device)
    streams = []
    for place in model.record_sites(layer):
        acts_BSD = acts[place.site]
        rows, length = acts_BSD.shape[:2]
        modality_BS = model.site_modality(place.site, batch, rows, length)
        row_T, column_T = _selected(modality_BS, tokens).nonzero(as_tuple=True)
        latents_BSK = acts_BSD.new_zeros(rows, length, len(chosen), dtype=torch.float32)
        for at in torch.arange(len(row_T)).split(_TOKENS_AT_ONCE):
            row, column = row_T[at], column_T[at]
            records_TR = _lift(acts_BSD[row, column], place, model.record_width(layer))
            latents_BSK[row, column] = sae.encode(records_TR, modality_BS[row, column])[:, chosen].float()
        streams.append(Stream(place.site, acts_BSD, latents_BSK, _directions(sae, place, chosen), modality_BS))
    return streams


def _selected(modality_BS: Tensor, tokens: str) -> Tensor:
    masks = {
        "all": modality_BS >= 0,
        "visual": modality_BS == Modality.VISUAL,
        "textual": modality_BS == Modality.TEXTUAL,
    }
    if tokens not in masks:
        raise ConfigError(f"cmig.tokens={tokens!r}: choose one of {', '.join(masks)}")
    return masks[tokens]


def _lift(acts_TD: Tensor, place: RecordSite, width: int) -> Tensor:
    """A site's activations as record vectors; the half of the other tower is zero."""
    if place.width == width:
        return acts_TD
    records_TR = acts_TD.new_zeros(len(acts_TD), width)
    records_TR[:, place.start : place.start + place.width] = acts_TD
    return records_TR


def _directions(sae: SparseAutoencoder, place: RecordSite, features_K: Tensor) -> Tensor:
    """decode(a + e_i) − decode(a) in the place's block, for visual and textual tokens: [2, K, D]."""
    block = slice(place.start, place.start + place.width)
    return torch.stack([sae.directions(modality)[features_K][:, block] for modality in MODALITIES])
