"""A dictionary over the processes of a mesh: each keeps its share of the latents, together they are the whole."""

from __future__ import annotations

from torch import Tensor

from cmma.errors import ConfigError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.mesh import Mesh
from cmma.sae.records import rank_slice


def spread(sae: SparseAutoencoder, mesh: Mesh) -> SparseAutoencoder:
    """Keep this process's latents of a dictionary that every process has built alike; returns it.

    Raises:
        ConfigError: `mesh.tp` > 1 does not divide the latents, or the architecture compares latents of two records.
    """
    if mesh.tp > 1:
        if sae.reads_pairs:
            raise ConfigError(f"sae.arch={sae.config.arch} needs all latents in every process; train it with "
                              "launch.tp=1")
        if sae.n_latents % mesh.tp:
            raise ConfigError(f"launch.tp={mesh.tp} does not divide sae.n_latents={sae.n_latents}; take a multiple")
        own = rank_slice(sae.n_latents, mesh.tp_rank, mesh.tp)
        for parameter in sae.latent_parameters():
            parameter.data = parameter.data[own].clone()
        sae.n_latents //= mesh.tp
    sae.mesh = mesh
    return sae


def whole_state(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """The weights and standardiser of all latents on the CPU, on rank 0; what this process holds on the others.

    All processes have to call it.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in sae.state_dict().items()}
    if sae.mesh.dp_rank == 0:
        state |= {name: sae.mesh.rows_on_first(state[name]) for name in latent_names(sae)}
    return state


def latent_names(sae: SparseAutoencoder) -> list[str]:
    """Names of the parameters with one row for each latent."""
    of_latents = {id(parameter) for parameter in sae.latent_parameters()}
    return [name for name, parameter in sae.named_parameters() if id(parameter) in of_latents]
