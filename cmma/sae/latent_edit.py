"""What an intervention does to latents (paper, Eq. 8-11): pure functions of tensors, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmma.errors import ConfigError


@dataclass(frozen=True)
class LatentSource:
    """Activations of some latents in another input.

    Attributes:
        latents: [I] which latents.
        values: their activations: [I] the same everywhere, [B, I] by sample, or [B, S, I] by sample and position.
    """

    latents: Sequence[int]
    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim not in (1, 2, 3) or self.values.shape[-1] != len(self.latents):
            raise ConfigError(f"source activations of {len(self.latents)} latents should be [I], [B, I] or [B, S, I], "
                              f"not {list(self.values.shape)}")

    def at(self, batch_index_N: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        """Source activations [N, I] of the tokens at hand, and whether the source has each token [N, 1].

        A token beyond the source's length (one generated later) has no counterpart.
        """
        device, n = batch_index_N.device, len(batch_index_N)
        values = self.values.to(device)
        has_N1 = torch.ones(n, 1, dtype=torch.bool, device=device)
        if values.ndim == 1:
            return values.expand(n, -1), has_N1
        if values.ndim == 2:
            return values[batch_index_N], has_N1
        last = values.shape[1] - 1
        return values[batch_index_N, position_N.clamp(max=last)], (position_N <= last)[:, None]


@dataclass(frozen=True)
class LatentEdit:
    """Every intervention is a'_i = factor_i · a_i + share_i · source_i + value_i on some latents.

    | | factor | share | value |
    |---|---|---|---|
    | ablate (Eq. 8) | 0 | 0 | 0 |
    | amplify by α (Eq. 9) | α | 0 | 0 |
    | substitute (Eq. 10) | 0 | 1 | 0 |
    | combine with weight β (Eq. 11) | β | 1 − β | 0 |
    | set to v | 0 | 0 | v |

    Attributes:
        latents_I: int64[I], those that change, ascending.
        factor_I, share_I, value_I: float[I].
        source: where source_i comes from; None if every share is 0.
        source_column_I: int64[I], column of the source's values for each latent; 0 where its share is 0.
    """

    latents_I: Tensor
    factor_I: Tensor
    share_I: Tensor
    value_I: Tensor
    source: LatentSource | None
    source_column_I: Tensor

    def to(self, device: torch.device | str) -> LatentEdit:
        """The edit with its tensors on a device."""
        return LatentEdit(self.latents_I.to(device), self.factor_I.to(device), self.share_I.to(device),
                          self.value_I.to(device), self.source, self.source_column_I.to(device))

    def apply(self, latents_NI: Tensor, batch_index_N: Tensor, position_N: Tensor) -> Tensor:
        """New activations [N, I] of the changed latents of N tokens; tokens without a source keep their own."""
        changed_NI = latents_NI * self.factor_I + self.value_I
        if self.source is None:
            return changed_NI
        source_NJ, has_N1 = self.source.at(batch_index_N, position_N)
        source_NI = source_NJ[:, self.source_column_I].to(latents_NI.dtype)
        lacks_NI = ~has_N1 & (self.share_I > 0)
        return torch.where(lacks_NI, latents_NI, changed_NI + self.share_I * source_NI)


def latent_edit(
    n_latents: int,
    ablate: Sequence[int] = (),
    amplify: Mapping[int, float] | None = None,
    set: Mapping[int, float] | None = None,
    substitute: LatentSource | None = None,
    combine: tuple[float, LatentSource] | None = None,
) -> LatentEdit:
    """Combine interventions on different latents into one edit.

    Args:
        n_latents: size of the dictionary.
        ablate: latents set to 0. amplify: {latent: factor α}. set: {latent: value}.
        substitute: latents that take their activation from another input.
        combine: (β, source): latents that become β times their own plus 1 − β times the source's activation.

    Raises:
        ConfigError: nothing is changed, a latent is out of range or changed twice, β outside [0, 1], or both
            `substitute` and `combine` are given.
    """
    if substitute is not None and combine is not None:
        raise ConfigError("substitute and combine cannot be given together; nest two edits")
    beta, source = (0.0, substitute) if combine is None else combine
    if not 0 <= beta <= 1:
        raise ConfigError(f"combine: the weight β = {beta} is not between 0 and 1 (Eq. 11)")
    entries = [(i, 0.0, 0.0, 0.0, 0) for i in ablate]
    entries += [(i, factor, 0.0, 0.0, 0) for i, factor in (amplify or {}).items()]
    entries += [(i, 0.0, 0.0, value, 0) for i, value in (set or {}).items()]
    if source is not None:
        entries += [(i, beta, 1 - beta, 0.0, column) for column, i in enumerate(source.latents)]
    entries.sort()
    latents = [entry[0] for entry in entries]
    if not latents:
        raise ConfigError("an edit needs at least one latent: ablate, amplify, set, substitute or combine")
    if twice := sorted(i for i in {*latents} if latents.count(i) > 1):
        raise ConfigError(f"latent {twice[0]} is changed twice in one edit; nest two edits")
    if wrong := [i for i in latents if not 0 <= i < n_latents]:
        raise ConfigError(f"latent {wrong[0]} does not exist: this dictionary has latents 0 to {n_latents - 1}")
    factor_I, share_I, value_I = (torch.tensor([entry[j] for entry in entries]) for j in (1, 2, 3))
    return LatentEdit(torch.tensor(latents), factor_I, share_I, value_I, source,
                      torch.tensor([entry[4] for entry in entries]))
