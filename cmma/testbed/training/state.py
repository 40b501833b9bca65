"""Training state as one safetensors file: tensors by number, everything else as JSON in the file's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmma.artifacts.files import atomic_path


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write nested dictionaries and lists of tensors and plain numbers; `path` is always one whole version."""
    tensors: dict[str, Tensor] = {}
    outline = json.dumps(_outline(state, tensors))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"outline": outline})


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """What `save_state` wrote, its tensors on `device`."""
    with safe_open(path, framework="pt", device=str(device)) as handle:
        outline = json.loads(handle.metadata()["outline"])
        return _rebuild(outline, {name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118


def _outline(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The structure of `value` as JSON; its tensors go to `tensors`, copied, since safetensors stores no aliases."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):  # pairs, since an optimiser's keys are integers
        return {"pairs": [[key, _outline(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_outline(entry, tensors) for entry in value]}
    return {"value": value}


def _rebuild(outline: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    match outline:
        case {"tensor": name}:
            return tensors[name]
        case {"pairs": pairs}:
            return {key: _rebuild(entry, tensors) for key, entry in pairs}
        case {"list": entries}:
            return [_rebuild(entry, tensors) for entry in entries]
        case _:
            return outline["value"]
