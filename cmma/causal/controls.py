"""Controls for interventions: random features of matched density, and random directions of equal norm."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cmma.errors import DataError
from cmma.hooks import TokenEdit, Where

NEAREST = 16
"""Live features nearest in log density, from which a control feature is drawn."""


def matched_features(density_K: Tensor, features: list[int], n_draws: int, seed: int) -> list[list[int]]:
    """Random live features that are about as often active as `features`, `n_draws` sets of the same size.

    Each feature is matched by one drawn from the `NEAREST` live features in log density that are neither intervened on
    nor already in the set.

    Args:
        density_K: share of records in which each latent is active; 0 = dead.

    Raises:
        DataError: too few live features to match.
    """
    candidates = torch.nonzero(density_K > 0).flatten()
    candidates = candidates[~torch.isin(candidates, torch.tensor(features))]
    if len(candidates) < len(features):
        raise DataError(
            f"{len(features)} features are to be matched with random ones, but only {len(candidates)} others are live; "
            "choose fewer features, or train a dictionary with fewer dead ones"
        )
    generator = torch.Generator().manual_seed(seed)
    log_density_K = density_K.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    draws = []
    for _ in range(n_draws):
        free = candidates
        drawn: list[int] = []
        for feature in features:
            distance = (log_density_K[free] - log_density_K[feature]).abs()
            # Ties (many features of one density) are broken at random, not by index.
            order = torch.argsort(distance[shuffle := torch.randperm(len(free), generator=generator)], stable=True)
            near = free[shuffle[order[:NEAREST]]]
            drawn.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
            free = free[free != drawn[-1]]
        draws.append(drawn)
    return draws


def random_direction(edit: TokenEdit, seed: int) -> TokenEdit:
    """The edit's control: on each token a change of the same norm, but along one random direction.

    The direction is one per seed, as a feature has one direction for all tokens.
    """

    def along_random(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        change_ND = edit.fn(acts_ND, modality_N, where) - acts_ND
        direction_D = torch.randn(acts_ND.shape[-1], generator=torch.Generator().manual_seed(seed))
        # The half of a pair view that a tower does not have is not changed, and takes no share of the norm.
        direction_ND = torch.where(change_ND != 0, direction_D.to(change_ND), 0)
        return acts_ND + change_ND.norm(dim=-1, keepdim=True) * torch.nn.functional.normalize(direction_ND, dim=-1)

    return replace(edit, fn=along_random)
