"""toy_llava on a few scenes, and records with planted directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.baselines.config import BaselinesConfig
from cmma.baselines.ground import Ground, Images, images
from cmma.features.concepts import Labels
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples

LAYER, D = 1, 96


@pytest.fixture(scope="session")
def scenes():
    return list(generate_samples("balanced", 0, 6, seed=5))


@pytest.fixture(scope="session")
def seen(toy, scenes):
    """The scenes with the model's own captions."""
    return images(toy, LAYER, scenes, ["red", "ring", "blue star"], BaselinesConfig())


@pytest.fixture(scope="session")
def planted():
    """40 images of 9 tokens; concept 0 lies along axis 0, concept 1 along axis 1, each on one token of its images."""
    rng = np.random.default_rng(0)
    records_IPD = torch.from_numpy(0.1 * rng.standard_normal((40, 9, D))).float()
    truth_IC = rng.random((40, 2)) < 0.5
    for image, concept in np.argwhere(truth_IC):
        records_IPD[image, 4 * concept, concept] += 9
    return Images((), records_IPD, Labels(("a", "b"), truth_IC))


@pytest.fixture(scope="session")
def plain():
    """A ground without a model, whose records are in standardised units and whose mean token is zero."""
    reader = TensorReader(torch.randn(200, D, generator=torch.Generator().manual_seed(0)))

    def make(selection=None, **settings) -> Ground:
        return Ground(None, LAYER, reader, Standardiser.identity((D,)), selection, BaselinesConfig(**settings))

    return make
