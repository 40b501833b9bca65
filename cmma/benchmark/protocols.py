"""What a method has to do to be scored, one protocol per kind of method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from cmma.causal.queries import Query
from cmma.causal.readout import Readout
from cmma.models.base import MultimodalModel
from cmma.sae.records import ActivationReader
from cmma.testbed.planted.circuits import PlantedCircuit


@dataclass(frozen=True)
class Budget:
    """What every dictionary method gets alike.

    Attributes:
        n_latents: size of the dictionary.
        l0_M: active latents per visual and per textual record to aim at.
        steps, batch: optimiser steps and records per step.
    """

    n_latents: int
    l0_M: tuple[float, float]
    steps: int
    batch: int = 512

    @property
    def k(self) -> int:
        """The target sparsity as one number of latents."""
        return max(1, round(sum(self.l0_M) / 2))


class Dictionary(Protocol):
    """A fitted dictionary.

    Attributes:
        decoder_MKW: [2, K, record width], the direction of each latent in visual and in textual records, in the
            model's units, of any norm.
        attends: whether `encode` makes use of a context.
    """

    decoder_MKW: Tensor
    attends: bool

    def encode(self, acts_BW: Tensor, modality_B: Tensor, context_BCW: Tensor | None = None) -> Tensor:
        """Records in the model's units → latents [B, K], not negative.

        The context, vectors of the other modality of the same sample, is given only to who `attends`.
        """
        ...

    def decode(self, latents_BK: Tensor, modality_B: Tensor) -> Tensor:
        """Latents → records in the model's units, as records of the given modality."""
        ...


class DictionaryMethod(Protocol):
    """Learns a dictionary from activation records."""

    def fit(self, reader: ActivationReader, budget: Budget, seed: int) -> Dictionary:
        """Learn from `reader.batches`; the labels of the batches may be used."""
        ...


@dataclass(frozen=True, eq=False)
class Graph:
    """What a graph builder says about all pairs of features, in the order of `Effects.pairs_P2`.

    Attributes:
        score_P: how strongly each pair is believed to interact; only the order matters.
        edge_P: bool, the pairs that it declares.
        sign_P: +1 or −1; 0 where it does not say.
    """

    score_P: np.ndarray
    edge_P: np.ndarray
    sign_P: np.ndarray


class GraphBuilder(Protocol):
    """Finds interactions between the features of a readout.

    It may call the circuit with sets of features (`ablate`), read its codes and differentiate its `readout`. It may not
    read what was planted.
    """

    def build(self, circuit: PlantedCircuit, seed: int) -> Graph:
        """The graph over `circuit.features_K`."""
        ...


class LocalisationMethod(Protocol):
    """Says which patches of an image an answer rests on."""

    def localise(self, model: MultimodalModel, query: Query, readout: Readout, seed: int) -> np.ndarray:
        """A score for every patch, row by row, [P]; higher = the readout rests on it more."""
        ...


class AttributionMethod(Protocol):
    """Estimates what ablating each feature alone would change, under the same rules."""

    def attribute(self, circuit: PlantedCircuit, seed: int) -> np.ndarray:
        """Mean effect of ablating each feature, [K], in any unit."""
        ...
