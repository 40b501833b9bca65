"""Dictionaries with features of their own for each modality: one latent, one direction in images and one in texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder, some
from cmma.sae.architectures.encoder import LinearEncoder
from cmma.sae.config import SAEConfig
from cmma.sae.standardiser import Standardiser, modality_row


class TowerStandardiser(Standardiser):
    """Records of one space as pair views [h_v ; h_t]: each modality gets coordinates of its own.

    A visual record becomes [h ; 0], a textual one [0 ; h]. Where the modality is unknown, which is never so in
    training, it is half of each: what is encoded and restored is the mean over the modalities. Records that are pair
    views already stay as they are.
    """

    def standardise(self, acts_BD: Tensor, modality_B: Tensor | None = None) -> Tensor:
        """Model units [B, d] → standardised pair views [B, 2d]."""
        h_BD = super().standardise(acts_BD, modality_B)
        if len(self.blocks) == 2:
            return h_BD
        return (self.towers(modality_B)[..., None] * h_BD[:, None]).flatten(1)

    def restore(self, standard_BD: Tensor, modality_B: Tensor | None = None) -> Tensor:
        """Standardised pair views [B, 2d] → model units [B, d], from the coordinates of the record's modality."""
        return super().restore(self._own(standard_BD, modality_B), modality_B)

    def restore_difference(self, standard_BD: Tensor, modality_B: Tensor | None = None) -> Tensor:
        """A difference of two pair views in model units [B, d]."""
        return super().restore_difference(self._own(standard_BD, modality_B), modality_B)

    def towers(self, modality_B: Tensor | None) -> Tensor:
        """How much of the visual and of the textual tower a record is, [B, 2], or [1, 2] for unknown modality."""
        joint = 0.5 if len(self.blocks) == 1 else 1.0
        weight_M2 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [joint, joint]], device=self.mean_MD.device)
        return weight_M2[modality_row(modality_B)].view(-1, 2)

    def _own(self, standard_BW: Tensor, modality_B: Tensor | None) -> Tensor:
        if len(self.blocks) == 2:
            return standard_BW
        return (self.towers(modality_B)[..., None] * standard_BW.unflatten(1, (2, -1))).sum(1)


class Towers(SparseAutoencoder):
    """Latents with a feature f_i^v, read and written in visual records, and a feature f_i^t in textual ones.

    W_dec is [K, 2d], visual then textual, each half of norm one, and so is W_enc, unless the encoder is shared. Biases
    are the standardiser's means per modality and b_pre on the way out; b_pre is not subtracted on the way in.

    Raises:
        ConfigError: a shared encoder for pair views, whose halves need not even have the same width.
    """

    shares_encoder: ClassVar[bool] = False
    standardiser: TowerStandardiser

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        if self.shares_encoder and len(standardiser.blocks) == 2:
            raise ConfigError(f"sae.arch={config.arch} reads both modalities with one encoder, and these records are "
                              "pair views with a part for each; take sae.arch=msae, which decodes the parts apart")
        self._blocks = (d, d) if len(standardiser.blocks) == 1 else standardiser.blocks
        standardiser = TowerStandardiser(standardiser.mean_MD, standardiser.scale_MD, standardiser.blocks)
        super().__init__(config, d, standardiser, generator)
        if self.shares_encoder:
            with torch.no_grad():  # both decoders start as the encoder's transpose
                self.W_dec.copy_(self.W_dec[:, :d].repeat(1, 2))
            self.W_enc = nn.Parameter(self.W_dec.detach()[:, :d].clone())
        else:
            self.b_enc_textual = nn.Parameter(torch.zeros(config.n_latents))

    @property
    def encoder_width(self) -> int:
        """See `SparseAutoencoder.encoder_width`."""
        return self.d if self.shares_encoder else sum(self._blocks)

    @property
    def feature_blocks(self) -> Sequence[int]:
        """See `SparseAutoencoder.feature_blocks`: the visual and the textual half."""
        return self._blocks

    def visible(self, h_BD: Tensor, modality_B: Tensor | None) -> Tensor:
        """Zero in the coordinates of the other modality: they are nobody's business."""
        seen_B2 = (self.standardiser.towers(modality_B) > 0).to(h_BD.dtype)
        return h_BD * seen_B2.repeat_interleave(torch.tensor(self._blocks, device=h_BD.device), dim=1)

    def encoder(
        self, h_BD: Tensor, context_BCD: Tensor | None = None, modality_B: Tensor | None = None,
        latents_I: Tensor | None = None,
    ) -> LinearEncoder:
        """W_enc h + b_enc, rows and biases of the record's modality."""
        h_BD = self._encoder_input(h_BD)
        if self.attention is not None and context_BCD is not None:
            h_BD = self.attention(h_BD, self._encoder_input(context_BCD))
        if self.shares_encoder:
            return LinearEncoder(h_BD, some(self.W_enc, latents_I), some(self.b_enc, latents_I))
        bias_2K = torch.stack([some(self.b_enc, latents_I), some(self.b_enc_textual, latents_I)])
        share_B2 = self.standardiser.towers(modality_B)
        return LinearEncoder(h_BD, some(self.W_enc, latents_I), bias_2K, share_BM=share_B2)

    def _encoder_input(self, h_xW: Tensor) -> Tensor:
        """A shared encoder reads the sum of both halves, of which one is zero."""
        return h_xW.unflatten(-1, (2, -1)).sum(-2) if self.shares_encoder else h_xW

    def latent_parameters(self) -> list[nn.Parameter]:
        """See `SparseAutoencoder.latent_parameters`."""
        own = [] if self.shares_encoder else [self.b_enc_textual]
        return [*super().latent_parameters(), *own]

    @torch.no_grad()
    def aim(self, latents_I: Tensor, direction_ID: Tensor, norm: float | Tensor) -> None:
        """See `SparseAutoencoder.aim`. A direction of one modality is written in that modality alone."""
        seen_ID = direction_ID != 0
        self.W_dec[latents_I] = torch.where(seen_ID, direction_ID, self.W_dec[latents_I])
        if self.shares_encoder:
            self.W_enc[latents_I] = self._encoder_input(direction_ID) * norm
        else:
            self.W_enc[latents_I] = torch.where(seen_ID, direction_ID * norm, self.W_enc[latents_I])
            self.b_enc_textual[latents_I] = 0
        self.b_enc[latents_I] = 0


def tower_of(modality: Modality, h_BW: Tensor, blocks: Sequence[int]) -> Tensor:
    """Pair views with the coordinates of the other modality set to zero."""
    visual_BD, textual_BD = h_BW.split(list(blocks), dim=1)
    if modality == Modality.VISUAL:
        return torch.cat([visual_BD, torch.zeros_like(textual_BD)], dim=1)
    return torch.cat([torch.zeros_like(visual_BD), textual_BD], dim=1)
