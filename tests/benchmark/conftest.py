"""A dictionary that knows the planted atoms."""

from __future__ import annotations

import pytest
import torch

from cmma.testbed.planted.config import PlantedConfig

# As many atoms as dimensions, so that the true dictionary can be inverted.
INVERTIBLE = PlantedConfig(d=36, n_visual=12, n_textual=12, n_shared=12, cosine=1.0, noise=0.0, offset=0.0,
                           density=0.15, exponent=0.0)


class Oracle:
    """The true atoms as a dictionary whose codes are the true ones."""

    planted = INVERTIBLE
    attends = False

    def __init__(self, world):
        self.decoder_MKW = torch.from_numpy(world.test.atoms.directions_MAW).float()
        self.scale_M = torch.tensor([INVERTIBLE.visual_scale, INVERTIBLE.textual_scale])
        # At ρ = 1 an atom has one direction, in whichever modality it is present.
        self.directions_KW = torch.where(self.decoder_MKW[0].any(1, keepdim=True), *self.decoder_MKW)

    def encode(self, acts_BW, modality_B):
        scaled_BW = acts_BW / self.scale_M[modality_B.long(), None]
        codes_BK = torch.linalg.solve(self.directions_KW.T.double(), scaled_BW.double().T).T.float()
        return torch.where(codes_BK > 1e-3, codes_BK, 0)

    def decode(self, latents_BK, modality_B):
        return latents_BK @ self.directions_KW * self.scale_M[modality_B.long(), None]


@pytest.fixture(name="oracle", scope="session")
def _oracle():
    """The class `Oracle`; `Oracle.planted` is the world that it can invert."""
    return Oracle
