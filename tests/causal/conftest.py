"""Tiny random models of the published classes, and scenes whose truth is known."""

from __future__ import annotations

import pytest
import torch

from cmma.causal.queries import caption_queries, question_queries
from cmma.causal.readout import collate_queries
from cmma.hooks import Trace
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import SAEConfig
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples


@pytest.fixture(scope="session")
def tiny_llava():
    """Makes a LlavaForConditionalGeneration: 4 language layers, 3 × 3 patches, always the same random weights."""
    spec = ModelSpec(name="tiny", weights="random", source="", architecture="llava-tiny", n_layers=4)
    return lambda: load_model(spec)


@pytest.fixture(scope="session")
def tiny(tiny_llava):
    """One that all tests share, and that none changes."""
    return tiny_llava()


@pytest.fixture(scope="session")
def pairs():
    """Clean and corrupted side of six semantic image pairs."""
    return list(generate_samples("pairs", 0, 12))


@pytest.fixture(scope="session")
def queries(pairs):
    """One question about each of six images."""
    return question_queries(pairs[::2], per_sample=1)


def random_dictionary(model, layer, queries, n_latents=96, dead=4):
    """An untrained dictionary in the units of the layer's records; its last `dead` latents never fire."""
    batch = collate_queries(model, queries)
    with torch.no_grad(), Trace(model, [place.site for place in model.record_sites(layer)]) as acts:
        model(**batch)
    records = model.records(acts, batch, layer)
    kept = records.modality >= 0
    reader = TensorReader(records.vectors[kept], records.modality[kept])
    standardiser = Standardiser.fit(reader, model.record_blocks(layer))
    sae = build_sae(SAEConfig(arch="standard", n_latents=n_latents), model.record_width(layer), standardiser)
    with torch.no_grad():
        sae.b_enc.fill_(-0.5)
        sae.b_enc[-dead:] = -1e6
    return sae.requires_grad_(False)


@pytest.fixture(scope="session")
def sae(tiny, queries):
    """A dictionary at layer 1 of the tiny LLaVA."""
    return random_dictionary(tiny, 1, queries)


@pytest.fixture(scope="session")
def clip_sae(tiny_clip, pairs):
    """A dictionary at layer 1 of the tiny CLIP, over pair views."""
    return random_dictionary(tiny_clip, 1, caption_queries(pairs[::2]))


@pytest.fixture(scope="session")
def dictionary():
    """Makes a dictionary of any layer: (model, layer, queries, n_latents, dead)."""
    return random_dictionary
