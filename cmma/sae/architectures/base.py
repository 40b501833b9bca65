"""What every sparse autoencoder shares: parameters, standardised and raw spaces, unit-norm features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.architectures.attention import CrossModalAttention
from cmma.sae.config import SAEConfig
from cmma.sae.standardiser import Standardiser


class SAEOutput(NamedTuple):
    """What a forward pass returns."""

    reconstruction_BD: Tensor
    """ĥ in the model's own units."""
    latents_BK: Tensor
    """a, non-negative, in standardised units."""


class SparseAutoencoder(nn.Module, ABC):
    """h = Σ a_i f_i + ε (paper, Eq. 1) in standardised space; subclasses say how pre-activations become sparse.

    `encode`, `decode` and `forward` speak the model's own units; the `*_standardised` methods speak the space in which
    the dictionary is trained. The rows of `W_dec` are the features f_i and have norm one.

    Args:
        config: architecture and objective.
        d: record width.
        standardiser: statistics of the records, kept in the SAE's file.
        generator: draws the initial features; None: torch's global one.
    """

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.d, self.n_latents = config, d, config.n_latents
        self.standardiser = standardiser
        features_KD = F.normalize(torch.randn(config.n_latents, d, generator=generator), dim=1)
        self.W_dec = nn.Parameter(features_KD)
        self.W_enc = nn.Parameter(features_KD.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.n_latents))
        self.b_pre = nn.Parameter(torch.zeros(d))
        self.attention = CrossModalAttention(d, config.attention_rank, generator) if config.attention else None

    @abstractmethod
    def activate(self, pre_BK: Tensor) -> Tensor:
        """Pre-activations → sparse non-negative latents. May overwrite its argument."""

    # --- the model's own units -------------------------------------------------------------------------------------

    def encode(self, acts_BD: Tensor, modality_B: Tensor | None = None, context_BCD: Tensor | None = None) -> Tensor:
        """Records in the model's units → latents [B, K].

        Args:
            acts_BD: [B, d].
            modality_B: [B] modality codes. None: pooled statistics, or both halves of a pair record.
            context_BCD: [B, C, d] vectors of the other modality, read only with cross-modal attention. None: nothing
                is attended to.

        Raises:
            DataError: the records have another width.
        """
        if acts_BD.shape[-1] != self.d:
            raise DataError(f"this dictionary reads records of width {self.d}, not {acts_BD.shape[-1]}")
        h_BD = self.standardiser.standardise(acts_BD.to(self.W_enc.dtype), modality_B)
        return self.encode_standardised(h_BD, self.standardise_context(context_BCD, modality_B))

    def decode(self, latents_BK: Tensor, modality_B: Tensor | None = None) -> Tensor:
        """Latents [B, K] → records [B, d] in the model's units; `modality_B` as in `encode`."""
        return self.standardiser.restore(self.decode_standardised(latents_BK), modality_B)

    def forward(
        self, acts_BD: Tensor, modality_B: Tensor | None = None, context_BCD: Tensor | None = None
    ) -> SAEOutput:
        """Encode and decode."""
        latents_BK = self.encode(acts_BD, modality_B, context_BCD)
        return SAEOutput(self.decode(latents_BK, modality_B), latents_BK)

    @property
    def feature_directions(self) -> Tensor:
        """[K, d] unit-norm features in standardised space, detached."""
        return self.W_dec.detach()

    def edit(self, **changes: Any) -> Any:
        """A `cmma.hooks.TokenEdit` that changes latents inside a running model; see `cmma.sae.edit.token_edit`."""
        from cmma.sae.edit import token_edit

        return token_edit(self, **changes)

    # --- standardised space ----------------------------------------------------------------------------------------

    def pre_activations(
        self, h_BD: Tensor, context_BCD: Tensor | None = None, latents_I: Tensor | None = None
    ) -> Tensor:
        """W_enc (h − b_pre) + b_enc (Eq. 2), for all latents or for `latents_I` alone: [B, K] or [B, I].

        b_pre enters through the bias, W_enc h + (b_enc − W_enc b_pre): the same number, and the gradient of b_pre is
        a matrix-vector product where the textbook form costs a sixth matrix product per step.
        """
        if self.attention is not None and context_BCD is not None:
            h_BD = self.attention(h_BD, context_BCD)
        weight: Tensor = self.W_enc
        bias: Tensor = self.b_enc
        if latents_I is not None:
            weight, bias = weight[latents_I], bias[latents_I]
        return F.linear(h_BD, weight, bias - weight @ self.b_pre)

    def encode_standardised(self, h_BD: Tensor, context_BCD: Tensor | None = None) -> Tensor:
        """Standardised records → latents [B, K]."""
        return self.activate(self.pre_activations(h_BD, context_BCD))

    def encode_some(self, h_BD: Tensor, latents_I: Tensor, context_BCD: Tensor | None = None) -> Tensor:
        """Activations [B, I] of some latents. Architectures whose latents do not compete compute only those."""
        return self.encode_standardised(h_BD, context_BCD)[:, latents_I]

    def decode_standardised(self, latents_BK: Tensor) -> Tensor:
        """W_dec a + b_pre (Eq. 2): [B, K] → [B, d]."""
        return torch.addmm(self.b_pre, latents_BK, self.W_dec)

    def standardise_context(self, context_BCD: Tensor | None, modality_B: Tensor | None) -> Tensor | None:
        """Context vectors in standardised units: they are of the modality that the record is not.

        A joint view has no other modality: it attends to zeros, which add nothing. None without attention, and where
        the modality of the records is unknown.
        """
        if context_BCD is None or modality_B is None or self.attention is None:
            return None
        flat = context_BCD.to(self.W_enc.dtype).flatten(0, 1)
        has_other_B = (modality_B == Modality.VISUAL) | (modality_B == Modality.TEXTUAL)
        other_B = torch.where(has_other_B, 1 - modality_B, modality_B)
        h_BCD = self.standardiser.standardise(flat, other_B.repeat_interleave(context_BCD.shape[1]))
        return h_BCD.view(context_BCD.shape) * has_other_B[:, None, None]

    # --- features of norm one --------------------------------------------------------------------------------------

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take out of W_dec's gradient what would only change the norm of a feature (Bricken et al. 2023)."""
        gradient_KD = self.W_dec.grad
        if gradient_KD is not None:
            parallel_K1 = torch.linalg.vecdot(gradient_KD, self.W_dec, dim=1)[:, None]
            gradient_KD.addcmul_(parallel_K1, self.W_dec, value=-1)

    @torch.no_grad()
    def normalise_features(self) -> None:
        """Project every feature back to norm one."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))
