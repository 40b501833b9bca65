"""Dead latents: who they are, and two ways to bring them back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.objective.losses import squared_error
from cmma.sae.records import rank_slice
from cmma.sae.training.parallel import Ranks

_ENCODER_NORM = 0.2
"""Norm of a resampled encoder row against the mean of the living (Bricken et al. 2023)."""


class DeadLatents(nn.Module):
    """Counts, for each latent, the records since it last fired.

    Args:
        n_latents: size of the dictionary.
        dead_after: records of silence after which a latent is dead.
    """

    silent_K: Tensor

    def __init__(self, n_latents: int, dead_after: int) -> None:
        super().__init__()
        self.dead_after = dead_after
        self.register_buffer("silent_K", torch.zeros(n_latents, dtype=torch.int64))

    def update(self, fired_K: Tensor, n_records: int) -> None:
        """Note a global batch: which latents fired in it, and its size."""
        self.silent_K.add_(n_records).masked_fill_(fired_K, 0)

    def indices(self) -> Tensor:
        """[I] the dead latents."""
        return (self.silent_K >= self.dead_after).nonzero()[:, 0]


def auxk_error(
    sae: SparseAutoencoder, h_BD: Tensor, context_BCD: Tensor | None, residual_BD: Tensor, dead_I: Tensor, k: int,
    modality_B: Tensor | None = None,
) -> Tensor:
    """Σ_b ‖e_b − ê_b‖², ê the reconstruction by the k strongest dead latents (AuxK of Gao et al. 2024), a scalar.

    Args:
        h_BD: standardised records.
        residual_BD: e = h − ĥ, detached: the living are not to make room. ê has no b_pre, since ĥ has it already.
        dead_I: the dead latents, at least one.
        modality_B: [B] codes.
    """
    pre_BI = sae.pre_activations(h_BD, context_BCD, modality_B, dead_I)
    values_Bk, kept_Bk = pre_BI.topk(min(k, len(dead_I)), dim=1, sorted=False)
    latents_BI = torch.zeros_like(pre_BI).scatter(1, kept_Bk, values_Bk.relu())
    return squared_error(residual_BD, sae.visible(latents_BI @ sae.W_dec[dead_I], modality_B))


@torch.no_grad()
def resample(
    sae: SparseAutoencoder, optimiser: Optimizer, residual_BD: Tensor, dead_I: Tensor, batch_size: int,
    generator: torch.Generator, ranks: Ranks,
) -> int:
    """Point dead latents at badly reconstructed records (Bricken et al. 2023); returns how many.

    Records are drawn with probability ∝ ‖residual‖⁴, without replacement, from the *global* batch. A latent's feature
    becomes the direction of the record's residual, its encoder row the same at a fifth of the living rows' mean norm,
    its bias 0, and its Adam moments 0.

    Args:
        residual_BD: h − ĥ of this rank's records.
        dead_I: the dead latents, at least one.
        batch_size: records in the global batch.
        generator: the same on every rank.
    """
    mine = rank_slice(batch_size, ranks.rank, ranks.world)
    weight_B = torch.zeros(batch_size, dtype=torch.float64, device=residual_BD.device)
    weight_B[mine] = residual_BD.double().square().sum(1).square()
    ranks.sum_([weight_B])
    n = min(len(dead_I), int((weight_B > 0).sum()))
    if n == 0:
        return 0
    drawn_I = torch.multinomial(weight_B.cpu(), n, generator=generator).to(weight_B.device)
    dead_I = dead_I[:n]
    direction_ID = torch.zeros(n, residual_BD.shape[1], device=residual_BD.device, dtype=residual_BD.dtype)
    is_mine_I = (drawn_I >= mine.start) & (drawn_I < mine.stop)
    direction_ID[is_mine_I] = residual_BD[drawn_I[is_mine_I] - mine.start]
    ranks.sum_([direction_ID])
    direction_ID = F.normalize(direction_ID, dim=1)

    alive_K = torch.ones(sae.n_latents, dtype=torch.bool, device=dead_I.device)
    alive_K[dead_I] = False
    norm = sae.W_enc[alive_K].norm(dim=1).mean() if alive_K.any() else sae.W_enc.new_ones(())
    sae.aim(dead_I, direction_ID, norm * _ENCODER_NORM)
    for parameter in sae.latent_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimiser.state[parameter]:
                optimiser.state[parameter][moment][dead_I] = 0
    return n
