"""Dead latents: who they are, and two ways to bring them back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.objective.losses import squared_error

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
        dead_I: the dead latents of this process; a tp peer has one at least.
        modality_B: [B] codes.
    """
    pre_BI = sae.pre_activations(h_BD, context_BCD, modality_B, dead_I)
    values_Bk, kept_Bk = pre_BI.topk(min(k, len(dead_I)), dim=1, sorted=False)
    values_Bk = sae.mesh.keep_largest("tp", values_Bk, k)
    latents_BI = torch.zeros_like(pre_BI).scatter(1, kept_Bk, values_Bk.relu())
    reconstruction_BD = sae.mesh.sum("tp", latents_BI @ sae.W_dec[dead_I])[0]
    return squared_error(residual_BD, sae.visible(reconstruction_BD, modality_B))


@torch.no_grad()
def resample(
    sae: SparseAutoencoder, optimiser: Optimizer, residual_BD: Tensor, dead_I: Tensor, generator: torch.Generator,
) -> int:
    """Point dead latents at badly reconstructed records (Bricken et al. 2023); returns how many of this process's.

    Records are drawn with probability ∝ ‖residual‖⁴, without replacement, from the *global* batch. A latent's feature
    becomes the direction of the record's residual, its encoder row the same at a fifth of the living rows' mean norm,
    its bias 0, and its Adam moments 0.

    Args:
        residual_BD: h − ĥ of this process's records.
        dead_I: the dead latents of this process; a tp peer has one at least.
        generator: the same on every process.
    """
    mesh, own = sae.mesh, len(residual_BD)
    first = mesh.before("dp", own)
    weight_B = torch.zeros(mesh.total("dp", own), dtype=torch.float64, device=residual_BD.device)
    weight_B[first : first + own] = residual_BD.double().square().sum(1).square()
    mesh.sum_([weight_B], "dp")
    n_dead, n_lower = mesh.total("tp", len(dead_I)), mesh.before("tp", len(dead_I))
    n = min(n_dead, int((weight_B > 0).sum()))
    if n == 0:
        return 0
    drawn_N = torch.multinomial(weight_B.cpu(), n, generator=generator).to(weight_B.device)
    direction_ND = torch.zeros(n, residual_BD.shape[1], device=residual_BD.device, dtype=residual_BD.dtype)
    is_own_N = (drawn_N >= first) & (drawn_N < first + own)
    direction_ND[is_own_N] = residual_BD[drawn_N[is_own_N] - first]
    mesh.sum_([direction_ND], "dp")
    direction_ID = F.normalize(direction_ND[n_lower : n_lower + len(dead_I)], dim=1)

    dead_I = dead_I[: len(direction_ID)]
    alive_K = torch.ones(sae.n_latents, dtype=torch.bool, device=dead_I.device)
    alive_K[dead_I] = False
    norms = sae.W_enc[alive_K].norm(dim=1)
    norm_sum, n_alive = norms.sum(), norms.new_tensor(float(len(norms)))
    mesh.sum_([norm_sum, n_alive], "tp")
    norm = norm_sum / n_alive if n_alive else sae.W_enc.new_ones(())
    sae.aim(dead_I, direction_ID, norm * _ENCODER_NORM)
    for parameter in sae.latent_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimiser.state[parameter]:
                optimiser.state[parameter][moment][dead_I] = 0
    return len(dead_I)
