"""toy_llava, which hallucinates for a known reason, and a small dictionary that nobody trained."""

from __future__ import annotations

import pytest
import torch

from cmma.hooks import Trace
from cmma.mitigation.config import MitigationConfig
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import SAEConfig
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples

LAYER = 1


@pytest.fixture(scope="session")
def small():
    """The smallest configuration that still does everything."""
    return MitigationConfig(
        n_calibration=4, n_held_out=3, candidates=3, max_features=2, beam=2, strengths=[1.0], gammas=[0.05],
        alphas=[1.0], head_counts=[1], n_questions=4, n_controls=1, max_new_tokens=40, n_bootstrap=100, batch_size=8,
    )


@pytest.fixture(scope="session")
def biased():
    """Scenes with the trigger and without any star."""
    return list(generate_samples("counter", 0, 8, seed=5))


@pytest.fixture(scope="session")
def plain():
    return list(generate_samples("balanced", 0, 8, seed=5))


@pytest.fixture(scope="session")
def records(toy, biased):
    """Activations [N, D] of the layer on captions, with modality and position."""
    batch = toy.collate(biased, answers=[sample.caption for sample in biased])
    with torch.no_grad(), Trace(toy, [toy.record_sites(LAYER)[0].site]) as acts:
        toy(**batch)
    return toy.records(acts, batch, LAYER)


@pytest.fixture(scope="session")
def sae(toy, records):
    """48 random features with a threshold, in the units of the layer."""
    kept = records.modality >= 0
    standardiser = Standardiser.fit(TensorReader(records.vectors[kept], records.modality[kept]), (96,))
    sae = build_sae(SAEConfig(arch="standard", n_latents=48), 96, standardiser)
    with torch.no_grad():
        sae.b_enc.fill_(-0.5)
    return sae.requires_grad_(False)
