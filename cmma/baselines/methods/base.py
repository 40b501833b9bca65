"""What a method is: units with a map over the patches, ways to steer with them, and a dictionary to control with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmma.baselines.ground import Ground, Images, Mentions, NotApplicable
from cmma.mitigation.prone import evidence, prediction_table
from cmma.mitigation.steering import Steering, feature_steering
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.standard import Standard
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser


@dataclass(frozen=True, eq=False)
class Reading:
    """What a method says about some images.

    Attributes:
        maps_IPU: value of every unit at every patch; more is more of what the unit stands for.
        scores_IU: value of every unit for the whole image.
        by_concept: unit u is the method's answer for concept u, so that there is nothing to choose.
    """

    maps_IPU: np.ndarray
    scores_IU: np.ndarray
    by_concept: bool = False


def strongest(maps_IPU: np.ndarray, by_concept: bool = False) -> Reading:
    """A reading in which an image scores as its strongest patch does."""
    return Reading(maps_IPU, maps_IPU.max(axis=1), by_concept)


class Method(ABC):
    """One way of finding and using what a model knows.

    Args:
        name: as tables call it.
        ground: everything that it may learn from, beside what `steerings` is given.
    """

    def __init__(self, name: str, ground: Ground) -> None:
        self.name, self.ground = name, ground

    @abstractmethod
    def read(self, images: Images) -> Reading:
        """Units of the method on these images."""

    @abstractmethod
    def steerings(self, mentions: Mentions) -> list[Steering] | NotApplicable:
        """Ways of making hallucination weaker; together they have `config.settings_tried` strengths."""

    @abstractmethod
    def dictionary(self) -> SparseAutoencoder | NotApplicable:
        """Units to change one factor of what the model says by."""


class DictionaryMethod(Method):
    """A dictionary of directions: M-SAE, a standard SAE, principal components, random directions."""

    def __init__(self, name: str, ground: Ground, sae: SparseAutoencoder) -> None:
        super().__init__(name, ground)
        self._sae = sae.requires_grad_(False)

    @torch.no_grad()
    def read(self, images: Images) -> Reading:
        """Latents of every image token."""
        acts_ND = images.records_IPD.flatten(0, 1)
        visual_N = torch.full((len(acts_ND),), int(Modality.VISUAL), device=acts_ND.device)
        latents_NK = self._sae.encode(acts_ND, visual_N)
        return strongest(latents_NK.unflatten(0, images.records_IPD.shape[:2]).cpu().numpy())

    def steerings(self, mentions: Mentions) -> list[Steering] | NotApplicable:
        """a' = (1 - s) a of the units whose activation on the image tells best that its caption hallucinates."""
        ground, config = self.ground, self.ground.config.mitigation
        evidence_NK = evidence(
            ground.model, self._sae, ground.layer, mentions.units, config.tokens, config.batch_size)
        units = prediction_table(evidence_NK, mentions.label_N, config.seed)["feature"].tolist()
        if not units:
            return NotApplicable("no unit is stronger on images whose captions hallucinate")
        return [weaker(self._sae, ground, units[:n], f"{self.name}, {n} units")
                for n in ground.config.unit_counts]

    def dictionary(self) -> SparseAutoencoder | NotApplicable:
        """The dictionary itself."""
        return self._sae


class DirectionMethod(Method):
    """A method that gives a direction for whatever it is asked for: gradients, linear probes, SHAP."""

    @abstractmethod
    def concept_directions(self) -> Tensor:
        """Float[C, D], model units: towards each concept, learnt on the selection images."""

    @abstractmethod
    def hallucination_direction(self, mentions: Mentions) -> Tensor:
        """Float[D], model units: towards naming what is not there, learnt on the calibration images."""

    def steerings(self, mentions: Mentions) -> list[Steering] | NotApplicable:
        """h' = h - s max(0, d · (h - mean)) d: the component along the direction, made weaker."""
        found = linear_dictionary(self.ground.standardiser, self.hallucination_direction(mentions)[None])
        strengths = tuple(self.ground.config.direction_strengths)
        return [replace(weaker(found, self.ground, [0], self.name), strengths=strengths)]

    def dictionary(self) -> SparseAutoencoder | NotApplicable:
        """One unit per concept."""
        return linear_dictionary(self.ground.standardiser, self.concept_directions())


def linear_dictionary(standardiser: Standardiser, directions_UD: Tensor) -> SparseAutoencoder:
    """Directions as a dictionary: a_u = max(0, d_u · z), written along d_u; z = standardised record, ‖d_u‖ = 1.

    So the engines that change latents inside a model change components along any direction.

    Args:
        directions_UD: in standardised units (a scalar scale per block: the same directions as in the model's units,
            where records are of one space).
    """
    found = Standard(preset("standard", n_latents=len(directions_UD)), directions_UD.shape[1], standardiser)
    unit_UD = F.normalize(directions_UD.detach().float(), dim=1)
    with torch.no_grad():
        found.W_dec.copy_(unit_UD)
        found.W_enc.copy_(unit_UD)
        found.b_enc.zero_()
    return found.to(standardiser.mean_MD.device).requires_grad_(False)


def weaker(sae: SparseAutoencoder, ground: Ground, units: list[int], name: str) -> Steering:
    """`feature_steering` under a name that tells units of different dictionaries apart."""
    steering = feature_steering(ground.model, sae, ground.layer, units, ground.config.mitigation, name)
    return replace(steering, scales=False)
