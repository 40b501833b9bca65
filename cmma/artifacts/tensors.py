"""Files of tensors from elsewhere, read without running anything in them."""

from __future__ import annotations

import pickle  # only for the name of the error
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cmma.errors import ArtifactError, CmmaError


def read_tensors(path: Path, error: type[CmmaError] = ArtifactError) -> dict[str, Tensor]:
    """Name → tensor of a `.safetensors` file, or of a state dictionary that torch saved (any other ending).

    Raises:
        `error`: the file is missing, damaged, or holds anything but tensors by name.
    """
    path = path.expanduser()
    try:
        tensors: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(
            path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as caught:
        reason = " ".join(str(caught).split())[:120]
        raise error(f"{path} is missing, damaged or more than tensors ({reason}); save its state_dict again"
                    ) from caught
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise error(f"{path} is not a dictionary of tensors; save `model.state_dict()`")
    return tensors
