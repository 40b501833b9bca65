"""Planted activation records: sums of known atoms, with the disturbances that real activations have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.sae.records import RecordBatch, TensorReader
from cmma.testbed import draws
from cmma.testbed.planted.atoms import Atoms, plant_atoms
from cmma.testbed.planted.codes import draw_codes, sample_keys
from cmma.testbed.planted.config import CLASSES, PlantedConfig

_NOISE, _OUTLIER = 16, 17
_SAMPLES_AT_ONCE = 4096  # bounds memory, does not influence content


@dataclass(frozen=True, eq=False)
class PlantedSamples:
    """Samples of a planted world with their truth. Axis M is (visual, textual): the two tokens of a sample.

    Attributes:
        config, atoms: the world.
        start: index of the first sample.
        acts_NMW: float32 [N, 2, record width].
        codes_NMA: float32 [N, 2, A]: acts = scale · (codes @ directions + disturbances).
    """

    config: PlantedConfig
    atoms: Atoms
    start: int
    acts_NMW: np.ndarray
    codes_NMA: np.ndarray

    def __len__(self) -> int:
        return len(self.codes_NMA)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Widths of a record's parts."""
        return (self.config.d,) * self.config.blocks

    @property
    def carries_NA(self) -> np.ndarray:
        """bool [N, A]: which atoms fire on any token of the sample."""
        return np.asarray((self.codes_NMA > 0).any(1))

    @property
    def concepts_NC(self) -> np.ndarray:
        """bool [N, n_shared]: the sample's labels, the shared concepts that either token has."""
        return self.carries_NA[:, self.atoms.class_A == CLASSES.index("shared")]

    @property
    def concept_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(name for name in self.atoms.names if name.startswith("shared"))

    def records(self, joint: bool = False) -> RecordBatch:
        """All tokens as records, sample by sample: visual, textual and, with `joint`, the sum of both views.

        Only pair views have a joint record; `position` is 0 for all. The context of a token is the other one; that of
        a joint record is zero.

        Raises:
            ConfigError: a joint view of tokens that live in one space.
        """
        if joint and self.config.blocks == 1:
            raise ConfigError("planted.blocks=1 has no joint view of a pair; set planted.blocks=2")
        n = len(self)
        acts_NRW, context_NRW = self.acts_NMW, self.acts_NMW[:, [1, 0]]
        if joint:
            both_N1W = self.acts_NMW.sum(1, keepdims=True)
            acts_NRW = np.concatenate([acts_NRW, both_N1W], 1)
            context_NRW = np.concatenate([context_NRW, np.zeros_like(both_N1W)], 1)
        rows = acts_NRW.shape[1]
        sample_B = torch.arange(self.start, self.start + n).repeat_interleave(rows)
        return RecordBatch(
            torch.from_numpy(acts_NRW.reshape(n * rows, -1)), torch.arange(rows, dtype=torch.int8).repeat(n),
            sample_B, torch.zeros_like(sample_B), torch.from_numpy(context_NRW.reshape(n * rows, 1, -1)),
            labels_BL=torch.from_numpy(self.concepts_NC).float().repeat_interleave(rows, dim=0),
        )

    def reader(self, held_out: float = 0.1, joint: bool = False) -> TensorReader:
        """What `cmma.sae.train` reads; the shared concepts are the labels."""
        records = self.records(joint)
        return TensorReader(
            records.acts_BD, records.modality_B, records.sample_B, labels_NL=records.labels_BL,
            context_NCD=records.context_BCD, blocks=self.blocks, held_out=held_out,
        )


def plant(config: PlantedConfig, split: str, start: int, stop: int) -> PlantedSamples:
    """Samples `start` … `stop` of a split; sample i depends on (config, split, i) only.

    Raises:
        ConfigError: no such split.
    """
    atoms = plant_atoms(config)
    chunks = [
        _chunk(config, atoms, sample_keys(config, split, first, min(first + _SAMPLES_AT_ONCE, stop)))
        for first in range(start, stop, _SAMPLES_AT_ONCE)
    ]
    acts, codes = zip(*chunks, strict=True)
    return PlantedSamples(config, atoms, start, np.concatenate(acts), np.concatenate(codes))


def _chunk(config: PlantedConfig, atoms: Atoms, keys_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes_NMA = draw_codes(config, atoms, keys_N)
    n, d = len(keys_N), config.d
    disturbance_NMD = config.noise * draws.normals(keys_N, _NOISE, 2 * d).reshape(n, 2, d)
    if config.n_outliers:
        z_NMO = draws.normals(keys_N, _OUTLIER, 2 * config.n_outliers).reshape(n, 2, config.n_outliers)
        disturbance_NMD[:, :, : config.n_outliers] += config.outlier * (1 + 0.1 * z_NMO)
    mean_MD = np.random.default_rng([config.seed, 1]).standard_normal((2, d))
    disturbance_NMD += config.offset * mean_MD / np.linalg.norm(mean_MD, axis=1, keepdims=True)

    acts_NMW = np.einsum("nma,maw->nmw", codes_NMA, atoms.directions_MAW, optimize=True)
    acts_NMW[:, Modality.VISUAL, :d] += disturbance_NMD[:, Modality.VISUAL]
    acts_NMW[:, Modality.TEXTUAL, -d:] += disturbance_NMD[:, Modality.TEXTUAL]
    acts_NMW *= np.array([config.visual_scale, config.textual_scale])[:, None]
    return acts_NMW.astype(np.float32), codes_NMA.astype(np.float32)
