"""What every sparse autoencoder shares: parameters, standardised and raw spaces, unit-norm features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.architectures.attention import CrossModalAttention
from cmma.sae.architectures.encoder import LinearEncoder
from cmma.sae.config import SAEConfig
from cmma.sae.kernels.sparse import SparseLatents, gather_sum
from cmma.sae.mesh import ALONE, Mesh
from cmma.sae.objective.statistics import LatentSums
from cmma.sae.records import ActivationReader, RecordBatch
from cmma.sae.standardiser import Standardiser


class SAEOutput(NamedTuple):
    """What a forward pass returns."""

    reconstruction_BD: Tensor
    """ĥ in the model's own units."""
    latents_BK: Tensor
    """a, non-negative, in standardised units."""


class TrainingPass(NamedTuple):
    """What a training step sees of a batch, in standardised units."""

    latents: Tensor | SparseLatents | LatentSums
    """a, non-negative: dense [B, K], or the few that are kept, or what the objective wants of them."""
    reconstruction_BD: Tensor
    """ĥ, zero where a record has no coordinates."""
    sparsity_B: Tensor | None = None
    """What lambda1 weighs, for each record; None: its L1 norm."""
    terms: Mapping[str, Tensor] = {}
    """More terms of the objective: weighted scalars, summed over the records."""


class SparseAutoencoder(nn.Module, ABC):
    """h = Σ a_i f_i + ε (paper, Eq. 1) in standardised space; subclasses say how pre-activations become sparse.

    `encode`, `decode` and `forward` speak the model's own units; the `*_standardised` methods speak the space in which
    the dictionary is trained. The rows of `W_dec` are the features f_i and have norm one in a dictionary trained here;
    an imported one keeps its own norms.

    An architecture overrides `activate`, and where that is not enough `training_pass`, `pre_activations` or `aim`.

    Args:
        config: architecture and objective.
        d: record width.
        standardiser: statistics of the records, kept in the SAE's file.
        generator: draws the initial features; None: torch's global one.

    Attributes:
        n_latents: latents that this process holds, which are all of them unless `mesh.tp` > 1.
        mesh: the processes that train the dictionary (`cmma.sae.training.parallel.spread`).
    """

    mesh: Mesh = ALONE
    competes: ClassVar[bool] = False
    """Whether a latent's activation depends on the other latents of the record."""
    whole_batch: ClassVar[bool] = False
    """Whether a training step has to see the whole batch at once, and not part by part."""
    reads_pairs: ClassVar[bool] = False
    """Whether training reads pairs of records: the reader then keeps the records of a sample together."""

    def __init__(
        self, config: SAEConfig, d: int, standardiser: Standardiser, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.d, self.n_latents = config, d, config.n_latents
        self.standardiser = standardiser
        blocks = self.feature_blocks
        draw_KD = torch.randn(config.n_latents, sum(blocks), generator=generator)
        features_KD = torch.cat([F.normalize(part, dim=1) for part in draw_KD.split(blocks, dim=1)], dim=1)
        self.W_dec = nn.Parameter(features_KD)
        self.W_enc = nn.Parameter(features_KD.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.n_latents))
        self.b_pre = nn.Parameter(torch.zeros(sum(blocks)))
        self.attention: CrossModalAttention | None = None
        if config.attention:
            self.attention = CrossModalAttention(self.encoder_width, config.attention_rank, generator)

    @property
    def encoder_width(self) -> int:
        """Width of what the encoder's rows are multiplied with."""
        return self.d

    @property
    def feature_blocks(self) -> Sequence[int]:
        """Widths of the parts of a feature that have norm one each; here it is one part."""
        return (self.d,)

    @abstractmethod
    def activate(self, pre_BK: Tensor, modality_B: Tensor | None = None, latents_I: Tensor | None = None) -> Tensor:
        """Pre-activations → sparse non-negative latents. May overwrite its argument.

        Args:
            pre_BK: [B, K], or [B, I] where latents do not compete.
            modality_B: [B] codes; None: unknown.
            latents_I: which latents the columns are; None: all.
        """

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
        return self.encode_standardised(h_BD, self.standardise_context(context_BCD, modality_B), modality_B)

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
        """[K, d] features in standardised space, detached; norm one where they were trained here.

        Where each modality has a decoder of its own they are [K, 2d]; `directions` is the same for every architecture.
        """
        return self.W_dec.detach()

    def directions(self, modality: Modality) -> Tensor:
        """[K, d]: what one unit of each latent adds to a record of a modality, in the model's units; detached."""
        modality_K = torch.full((self.n_latents,), int(modality), device=self.W_dec.device)
        return self.standardiser.restore_difference(self.feature_directions, modality_K)

    def edit(self, **changes: Any) -> Any:
        """A `cmma.hooks.TokenEdit` that changes latents inside a running model; see `cmma.sae.edit.token_edit`."""
        from cmma.sae.edit import token_edit

        return token_edit(self, **changes)

    # --- standardised space ----------------------------------------------------------------------------------------

    def encoder(
        self, h_BD: Tensor, context_BCD: Tensor | None = None, modality_B: Tensor | None = None,
        latents_I: Tensor | None = None,
    ) -> LinearEncoder:
        """What `pre_activations` computes, before it is computed."""
        if self.attention is not None and context_BCD is not None:
            h_BD = self.attention(h_BD, context_BCD)
        return LinearEncoder(h_BD, some(self.W_enc, latents_I), some(self.b_enc, latents_I), self.b_pre)

    def pre_activations(
        self, h_BD: Tensor, context_BCD: Tensor | None = None, modality_B: Tensor | None = None,
        latents_I: Tensor | None = None,
    ) -> Tensor:
        """W_enc (h − b_pre) + b_enc (Eq. 2), for all latents or for `latents_I` alone: [B, K] or [B, I]."""
        return self.encoder(h_BD, context_BCD, modality_B, latents_I).dense()

    def encode_standardised(
        self, h_BD: Tensor, context_BCD: Tensor | None = None, modality_B: Tensor | None = None
    ) -> Tensor:
        """Standardised records → latents [B, K]."""
        return self.activate(self.pre_activations(h_BD, context_BCD, modality_B), modality_B)

    def encode_some(
        self, h_BD: Tensor, latents_I: Tensor, context_BCD: Tensor | None = None, modality_B: Tensor | None = None
    ) -> Tensor:
        """Activations [B, I] of some latents. Where latents do not compete only those are computed."""
        if self.competes:
            return self.encode_standardised(h_BD, context_BCD, modality_B)[:, latents_I]
        return self.activate(self.pre_activations(h_BD, context_BCD, modality_B, latents_I), modality_B, latents_I)

    def decode_standardised(self, latents_BK: Tensor | SparseLatents) -> Tensor:
        """W_dec a + b_pre (Eq. 2): [B, K] → [B, d]."""
        share_D = self.mesh.share(self.b_pre)
        if isinstance(latents_BK, SparseLatents):
            return self.mesh.sum("tp", share_D + gather_sum(latents_BK, self.W_dec))[0]
        return self.mesh.sum("tp", torch.addmm(share_D, latents_BK, self.W_dec))[0]

    def training_pass(self, h_BD: Tensor, context_BCD: Tensor | None, batch: RecordBatch) -> TrainingPass:
        """Encode and decode a batch for a training step; `batch` says of what modality and sample the records are."""
        latents_BK = self.encode_standardised(h_BD, context_BCD, batch.modality_B)
        return TrainingPass(latents_BK, self.reconstruct(latents_BK, batch.modality_B))

    def reconstruct(self, latents_BK: Tensor | SparseLatents, modality_B: Tensor | None) -> Tensor:
        """`decode_standardised` without the coordinates that a record of that modality does not have."""
        return self.visible(self.decode_standardised(latents_BK), modality_B)

    def visible(self, h_BD: Tensor, modality_B: Tensor | None) -> Tensor:
        """Set coordinates to zero that are not compared with a record of that modality; here all are."""
        return h_BD

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
        return h_BCD.view(*context_BCD.shape[:2], -1) * has_other_B[:, None, None]

    # --- training --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take out of W_dec's gradient what would only change the norm of a feature (Bricken et al. 2023)."""
        if self.W_dec.grad is None:
            return
        blocks = self.feature_blocks
        for gradient_KD, features_KD in zip(
            self.W_dec.grad.split(blocks, dim=1), self.W_dec.split(blocks, dim=1), strict=True
        ):
            parallel_K1 = torch.linalg.vecdot(gradient_KD, features_KD, dim=1)[:, None]
            gradient_KD.addcmul_(parallel_K1, features_KD, value=-1)

    @torch.no_grad()
    def project(self) -> None:
        """Back to what the parameters have to be after a step of the optimiser: features of norm one."""
        for features_KD in self.W_dec.split(self.feature_blocks, dim=1):
            features_KD.div_(torch.linalg.vector_norm(features_KD, dim=1, keepdim=True))

    def latent_parameters(self) -> list[nn.Parameter]:
        """The parameters with one row for each latent."""
        return [self.W_dec, self.W_enc, self.b_enc]

    @torch.no_grad()
    def aim(self, latents_I: Tensor, direction_ID: Tensor, norm: float | Tensor) -> None:
        """Make latents detect and write a direction.

        Args:
            latents_I: [I] which.
            direction_ID: [I, d] of norm one, in standardised space.
            norm: of the new encoder rows.
        """
        self.W_dec[latents_I] = direction_ID
        self.W_enc[latents_I] = direction_ID * norm
        self.b_enc[latents_I] = self.W_enc[latents_I] @ self.b_pre

    def conclude(self, reader: ActivationReader, batch_size: int, seed: int) -> None:
        """What is left to do when the last step is done; nothing for most architectures."""


def some(value: Tensor, rows: Tensor | None) -> Tensor:
    """`value[rows]`, or all of it."""
    return value if rows is None else value[rows]
