"""One adapter per model family, behind one interface (`cmma.models.base`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cmma.errors import ConfigError

if TYPE_CHECKING:
    from cmma.models.base import MultimodalModel
    from cmma.models.spec import ModelSpec

FAMILIES = {
    "llava": "cmma.models.llava", "clip": "cmma.models.clip", "blip": "cmma.models.blip",
    "stable_diffusion": "cmma.models.stable_diffusion",
}  # fmt: skip
"""Family → module with `load(spec, device, dtype)`; imported when a model of that family is asked for."""


def load_model(spec: ModelSpec, device: str = "cpu", dtype: str | None = None) -> MultimodalModel:
    """Load one model in evaluation mode with frozen parameters.

    Args:
        spec: what to load (`cmma.models.spec.ModelSpec`).
        device: a torch device; "meta" builds the architecture without memory (random LLaVA weights only).
        dtype: "float32", "bfloat16" or "float16"; default `spec.dtype`.

    Raises:
        ConfigError: an unknown architecture, or a depth other than `spec.n_layers`.
        DataError: weights that are missing, incomplete, damaged or out of reach.
    """
    model = import_module(FAMILIES[spec.family]).load(spec, device, dtype or spec.dtype)
    if model.n_layers != spec.n_layers:
        raise ConfigError(f"model.n_layers={spec.n_layers}, but {spec.name} has {model.n_layers} layers")
    return model
