"""Tiny models of the published classes with random weights, shared by all tests; none may change them."""

from __future__ import annotations

import pytest
import torch

from cmma.config import load_group
from cmma.models import load_model
from cmma.models.spec import ModelSpec, model_folder


@pytest.fixture(autouse=True, scope="module")
def threads():
    """A stage sets the number of threads of its process, and sums of other tests would end in another last bit."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    """A LLaVA of 4 language layers and 3 × 3 patches."""
    return load_model(
        ModelSpec(name="tiny", weights="random", source="", architecture="llava-tiny", n_layers=4, prompt="Describe.")
    )


@pytest.fixture(scope="session")
def tiny_clip():
    """A CLIP of 4 vision and 2 text layers."""
    return load_model(
        ModelSpec(name="tiny clip", family="clip", weights="random", source="", architecture="clip-tiny", n_layers=4)
    )


@pytest.fixture(scope="session")
def toy():
    """The trained LLaVA that ships with the package."""
    if not list(model_folder("builtin:toy_llava").glob("*.safetensors")):
        pytest.skip("toy_llava's weights are not here")
    return load_model(ModelSpec(**load_group("model", "toy_llava")))
