"""Ways of steering a model while it writes: features of a dictionary made weaker, and the controls of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from cmma.causal.controls import matched_features, random_direction
from cmma.data.samples import Sample
from cmma.hooks import Edit, TokenEdit, splice
from cmma.mitigation.config import MitigationConfig
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder

Under = Callable[[float, Sequence[Sample]], AbstractContextManager[object]]
"""(strength, the images of a batch) → the context in which the batch is generated."""


def _nothing(strength: float, samples: Sequence[Sample]) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True)
class Steering:
    """One way of steering.

    Attributes:
        name: as tables call it.
        under: what is in force while a batch is generated, at a strength.
        strengths: what is tried of the strength on the calibration images.
        prompt: instruction for captions; empty = the model's own.
        features: latents of the dictionary that it changes or moves along, where it has some.
        scales: it scales these features, and so does the same whatever its name.
        signed: a negative strength is the opposite, and should raise what a positive one lowers.
    """

    name: str
    under: Under = field(default=_nothing, repr=False)
    strengths: tuple[float, ...] = (1.0,)
    prompt: str = ""
    features: tuple[int, ...] = ()
    scales: bool = False
    signed: bool = False

    @property
    def identity(self) -> object:
        """Equal for two that do the same at equal strength."""
        return frozenset(self.features) if self.scales else self.name


UNSTEERED = Steering("clean")


def feature_steering(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, features: Sequence[int], config: MitigationConfig,
    name: str,
) -> Steering:  # fmt: skip
    """a' = (1 - s) · a for some latents: s = 1 ablates (Eq. 8), a negative s amplifies by 1 + |s| (Eq. 9)."""

    def under(strength: float, samples: Sequence[Sample]) -> AbstractContextManager[object]:
        return splice(model, layer, _weaker(sae, features, strength, config))

    return Steering(name, under, tuple(config.strengths), features=tuple(features), scales=True, signed=True)


def feature_controls(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, features: Sequence[int], density_K: Tensor,
    config: MitigationConfig,
) -> dict[str, list[Steering]]:  # fmt: skip
    """`random features` of matched density, and changes of equal norm along a `random direction`; draws of each."""
    drawn = matched_features(density_K, list(features), config.n_controls, config.seed)

    def along(seed: int) -> Under:
        def under(strength: float, samples: Sequence[Sample]) -> AbstractContextManager[object]:
            return splice(model, layer, random_direction(_weaker(sae, features, strength, config), seed))

        return under

    return {
        "random features": [
            feature_steering(model, sae, layer, each, config, f"random features {draw}")
            for draw, each in enumerate(drawn)
        ],
        "random direction": [
            Steering(f"random direction {draw}", along(1_000_003 * (config.seed + 1) + draw), tuple(config.strengths))
            for draw in range(config.n_controls)
        ],
    }


def _weaker(
    sae: SparseAutoencoder, features: Sequence[int], strength: float, config: MitigationConfig
) -> TokenEdit:
    edit: TokenEdit = sae.edit(
        amplify=dict.fromkeys(features, 1 - strength), tokens=config.tokens, phase=config.phase)
    return edit


@contextmanager
def edits(model: MultimodalModel, changes: Sequence[tuple[str, TokenEdit]]) -> Iterator[None]:
    """Several edits at sites, in this order."""
    with ExitStack() as stack:
        for site, change in changes:
            stack.enter_context(Edit(model, site, change))
        yield
