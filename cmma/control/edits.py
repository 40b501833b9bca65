"""The edit of a trial: which tokens are the object's, what their features are like for each value, what they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmma.control.trials import ATTRIBUTES, VALUES, Trial
from cmma.hooks import TokenEdit, Where
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.latent_edit import LatentSource


@dataclass(frozen=True)
class Slots:
    """Which tokens of a batch are about which object.

    Attributes:
        thing_BS: int64[B, S], index of the object in the sample's scene; -1 elsewhere.
        role_BS: int64[B, S], what the token is to the object: which word of its phrase, or which part of its place.
        n_roles: number of roles.
    """

    thing_BS: Tensor
    role_BS: Tensor
    n_roles: int

    def of(self, trials: Sequence[Trial]) -> Tensor:
        """bool[B, S]: the tokens of the objects that the trials change."""
        chosen_BS = torch.zeros_like(self.thing_BS, dtype=torch.bool)
        for row, trial in enumerate(trials):
            chosen_BS[row] = torch.isin(self.thing_BS[row], torch.tensor(trial.objects))
        return chosen_BS


@dataclass
class Contrasts:
    """Mean activations of all latents on the tokens of objects, by the object's attributes.

    Attributes:
        sums: attribute → float64[V, R, T, K]: sums by value, role and pass of the generation (one where the tokens are
            passed once). counts: attribute → float64[V, R, T].
        active_K, n_tokens: how often each latent was active on these tokens.
    """

    sums: dict[str, Tensor]
    counts: dict[str, Tensor]
    active_K: Tensor
    n_tokens: int = 0

    @classmethod
    def empty(cls, n_roles: int, n_passes: int, n_latents: int) -> Contrasts:
        shape = (n_roles, n_passes)
        return cls(
            {name: torch.zeros(len(VALUES[name]), *shape, n_latents, dtype=torch.float64) for name in ATTRIBUTES},
            {name: torch.zeros(len(VALUES[name]), *shape, dtype=torch.float64) for name in ATTRIBUTES},
            torch.zeros(n_latents),
        )

    @property
    def density_K(self) -> Tensor:
        """Share of the objects' tokens on which each latent is active."""
        return self.active_K / max(self.n_tokens, 1)

    def mean(self, factor: str, value: str) -> Tensor:
        """float32[R, T, K]: mean activation on tokens of objects with this value."""
        index = VALUES[factor].index(value)
        return (self.sums[factor][index] / self.counts[factor][index].clamp_min(1)[..., None]).float()

    def features(self, trial: Trial, n: int) -> tuple[int, ...]:
        """The `n` latents that tell best between the values: largest difference of means over roles and passes."""
        score_K = torch.zeros_like(self.active_K)
        for _, factor, source, target in trial.value_changes():
            score_K += (self.mean(factor, target) - self.mean(factor, source)).square().sum((0, 1))
        return tuple(score_K.argsort(descending=True, stable=True)[:n].tolist())

    def recording(self, sae: SparseAutoencoder, slots: Slots, objects: Sequence[Sequence[dict[str, str]]]) -> TokenEdit:
        """An edit that changes nothing and adds the activations of every object's tokens to the sums.

        Args:
            objects: the scene of each row. A batch of 2 B rows is guided generation: only its second half is noted.
        """
        rows, passes = len(objects), _Passes()

        def note(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            latents_NK = sae.encode(acts_ND, modality_N).double().cpu()
            row_N, position_N = where.batch_index.cpu() % rows, where.position.cpu()
            role_N, thing_N = slots.role_BS[row_N, position_N], slots.thing_BS[row_N, position_N]
            for name in ATTRIBUTES:
                value_N = torch.tensor([
                    VALUES[name].index(objects[row][thing][name])
                    for row, thing in zip(row_N.tolist(), thing_N.tolist(), strict=True)
                ])  # fmt: skip
                at = (value_N, role_N, torch.full_like(role_N, passes.count))
                self.sums[name].index_put_(at, latents_NK, accumulate=True)
                self.counts[name].index_put_(at, torch.ones(len(role_N), dtype=torch.float64), accumulate=True)
            self.active_K += (latents_NK > 0).sum(0)
            self.n_tokens += len(latents_NK)
            passes.count += 1
            return acts_ND

        return TokenEdit(note, slots.thing_BS >= 0, "prefill")


@dataclass
class _Passes:
    """How often an edit was called: the pass of the generation that is running."""

    count: int = 0


@dataclass(frozen=True)
class Setting:
    """How features are changed. Attributes are those of `ControlConfig`, one value each.

    Attributes:
        tokens: `textual` or `visual`.
    """

    tokens: str
    n_features: int
    strength: float
    start: float = 0.0

    def first_pass(self, n_passes: int) -> int:
        """The denoising step from which the edit is in force."""
        return round(self.start * n_passes)


@dataclass(frozen=True)
class FeatureChange:
    """Change the features of a batch of trials: a' = max(0, a + γ (target − source)) on the tokens of the objects.

    Target and source are the features' mean activations on such tokens, by role and pass, of objects that have the
    value that is wanted and the value that is there. Objects that change places exchange all their values.

    Attributes:
        trials: one per row of the batch.
        features: latents of each trial.
        slots: tokens of the batch.
        first_pass: passes before this one are left alone.
    """

    sae: SparseAutoencoder
    trials: Sequence[Trial]
    features: Sequence[tuple[int, ...]]
    contrasts: Contrasts
    slots: Slots
    strength: float
    first_pass: int = 0
    passes: _Passes = field(default_factory=_Passes)

    def edit(self) -> TokenEdit:
        """To be put where the records come from; one object per generation, since it counts the passes."""
        return TokenEdit(self._change, self.slots.of(self.trials), "prefill")

    def _change(self, acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        now = self.passes.count
        self.passes.count += 1
        if now < self.first_pass:
            return acts_ND
        new_ND = acts_ND.clone()
        latents_NK = self.sae.encode(acts_ND, modality_N)
        for row in where.batch_index.unique().tolist():
            index_M = (where.batch_index == row).nonzero().flatten()
            trial = self.trials[row % len(self.trials)]
            features = list(self.features[row % len(self.trials)])
            role_M = self.slots.role_BS[row % len(self.trials), where.position[index_M].cpu()]
            thing_M = self.slots.thing_BS[row % len(self.trials), where.position[index_M].cpu()]
            latents_MF = latents_NK[index_M][:, features]
            shift_MF = self._shift(trial, features, role_M, thing_M, now).to(latents_MF)
            moved_MF = (latents_MF + self.strength * shift_MF).clamp_min(0)
            source = LatentSource(features, moved_MF[None])
            here = Where(torch.zeros_like(index_M), torch.arange(len(index_M), device=index_M.device), where.step)
            rewrite = self.sae.edit(substitute=source).fn
            new_ND[index_M] = rewrite(acts_ND[index_M], modality_N[index_M], here).to(acts_ND)
        return new_ND

    def _shift(self, trial: Trial, features: list[int], role_M: Tensor, thing_M: Tensor, now: int) -> Tensor:
        """What one strength adds to the features on each token: Float[M, F]."""
        shift_MF = torch.zeros(len(role_M), len(features))
        for thing, factor, source, target in trial.value_changes():
            change_RK = self.contrasts.mean(factor, target)[:, now] - self.contrasts.mean(factor, source)[:, now]
            shift_MF += torch.where((thing_M == thing)[:, None], change_RK[:, features][role_M], 0)
        return shift_MF
