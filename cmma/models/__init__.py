"""One adapter per model family, behind one interface (`cmma.models.base`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cmma.errors import ConfigError

if TYPE_CHECKING:
    from cmma.models.base import ModelSpec, MultimodalModel

FAMILIES = {"llava": "cmma.models.llava", "clip": "cmma.models.clip"}
"""Family → module with `load(spec, device, dtype)`; imported when a model of that family is asked for."""


def load_model(spec: ModelSpec, device: str = "cpu", dtype: str = "float32") -> MultimodalModel:
    """Load one model in evaluation mode with frozen parameters.

    Args:
        spec: what to load (`cmma.models.base.ModelSpec`).
        device: a torch device; "meta" builds the architecture without memory (random weights only).
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        ConfigError: unknown family, weights, dtype or architecture.
        DataError: weights that are missing, incomplete, damaged or out of reach.
    """
    if spec.family not in FAMILIES:
        raise ConfigError(f"model.family={spec.family!r} is unknown; families are {', '.join(FAMILIES)}")
    return import_module(FAMILIES[spec.family]).load(spec, device, dtype)
