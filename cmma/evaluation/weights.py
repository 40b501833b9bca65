"""Weights of metric networks, from files that a user has."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from cmma.errors import DataError


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dictionary (`.pth`, `.pt` or `.safetensors`); nothing in the file is executed.

    Raises:
        DataError: the file is missing, damaged, or holds anything but tensors by name.
    """
    path = path.expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: weights cannot be read ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{path}: holds no state dictionary; save `model.state_dict()`")
    return found
