"""Interventions on latents inside a running model (paper, Eq. 8-11; `docs/paper.md`, Interventions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from cmma.errors import DataError
from cmma.hooks import TokenEdit, Where
from cmma.sae.latent_edit import LatentSource, latent_edit

if TYPE_CHECKING:
    from cmma.sae.architectures.base import SparseAutoencoder


def token_edit(
    sae: SparseAutoencoder,
    *,
    ablate: Sequence[int] = (),
    amplify: Mapping[int, float] | None = None,
    set: Mapping[int, float] | None = None,
    substitute: LatentSource | None = None,
    combine: tuple[float, LatentSource] | None = None,
    tokens: Literal["all", "visual", "textual", "every"] | Sequence[int] | Tensor = "all",
    phase: Literal["all", "prefill", "decode"] = "all",
    keep_error: bool = True,
) -> TokenEdit:
    """Change latents at a site: `with Edit(model, site, sae.edit(ablate=[12], tokens="textual")): …`

    h' = h + decode(a') − decode(a): what the dictionary does not explain passes through untouched. Only the changed
    latents are decoded, and where latents do not compete only they are encoded. There is no cross-modal context inside
    a site, so an encoder with attention runs without it here.

    A dictionary over pair records [h_v ; h_t] also takes the activations of one tower: they fill that tower's half, the
    other half is absent.

    Args:
        sae: the dictionary of the site.
        ablate, amplify, set, substitute, combine: as in `cmma.sae.latent_edit.latent_edit`.
        tokens, phase: as in `cmma.hooks.TokenEdit`.
        keep_error: False drops the reconstruction error: h' = decode(a').

    Raises:
        ConfigError: the changes contradict each other or name latents that do not exist.
    """
    edit = latent_edit(sae.n_latents, ablate, amplify, set, substitute, combine).to(sae.W_dec.device)

    def rewrite(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        modality_N = modality_N.to(sae.W_dec.device)
        acts_NW = acts_ND.to(sae.W_dec)
        half = _half(sae, acts_NW, modality_N)
        record_ND = torch.zeros(len(acts_NW), sae.d, dtype=acts_NW.dtype, device=acts_NW.device)
        record_ND[:, half] = acts_NW
        h_ND = sae.standardiser.standardise(record_ND, modality_N)
        batch_index_N, position_N = where.batch_index.to(acts_NW.device), where.position.to(acts_NW.device)
        if keep_error:
            latents_NI = sae.encode_some(h_ND, edit.latents_I, modality_B=modality_N)
            change_NI = edit.apply(latents_NI, batch_index_N, position_N) - latents_NI
            change_ND = sae.standardiser.restore_difference(change_NI @ sae.W_dec[edit.latents_I], modality_N)
            return acts_NW + change_ND[:, half]
        latents_NK = sae.encode_standardised(h_ND, modality_B=modality_N)
        changed_NI = edit.apply(latents_NK[:, edit.latents_I], batch_index_N, position_N)
        return sae.decode(latents_NK.index_copy(1, edit.latents_I, changed_NI), modality_N)[:, half]

    return TokenEdit(rewrite, tokens, phase)


def _half(sae: SparseAutoencoder, acts_NW: Tensor, modality_N: Tensor) -> slice:
    """Which columns of the record the activations are: all, or the half of their tower."""
    width, blocks = acts_NW.shape[1], sae.standardiser.blocks
    if width == sae.d:
        return slice(None)
    start = 0
    for modality, block in enumerate(blocks):
        if width == block and len(blocks) > 1 and bool((modality_N == modality).all()):
            return slice(start, start + block)
        start += block
    raise DataError(f"a dictionary over records of widths {blocks} cannot edit activations of width {width} and "
                    f"modality {modality_N.unique().tolist()}")
