"""Checkpoints that a `kill -9` cannot spoil: tensors first, then the JSON that declares them complete.

A checkpoint is `step-XXXXXXXXX.safetensors` with `step-XXXXXXXXX.json`, each written to a temporary name, fsynced and
renamed. The previous one is removed only when the new one is complete. There is no random-generator state in it: every
draw is a function of (seed, step).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmma.artifacts.files import atomic_path, read_json, remove_stale_temporaries, write_json
from cmma.errors import ArtifactError


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write the checkpoint of a step, then remove the others.

    Raises:
        ArtifactError: the folder cannot be written; the previous checkpoint is untouched.
    """
    path = folder / f"step-{step:09d}.safetensors"
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    write_json(path.with_suffix(".json"), {**state, "step": step, "bytes": path.stat().st_size})
    for old in _complete(folder):
        if old != path:
            old.with_suffix(".json").unlink()  # first: without it the tensors are not a checkpoint
            old.unlink(missing_ok=True)
    for orphan in folder.glob("step-*.safetensors"):
        if not orphan.with_suffix(".json").exists():
            orphan.unlink()


def load_checkpoint(folder: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete checkpoint, or None if there is none.

    Raises:
        ArtifactError: it is damaged.
    """
    complete = _complete(folder)
    if not complete:
        return None
    path = complete[-1]
    state = read_json(path.with_suffix(".json"))
    try:
        if path.stat().st_size != state["bytes"]:
            raise ArtifactError(f"{path} is truncated; remove {folder} to train from the start")
        return load_file(path, device=device), state
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); remove {folder} to train from the start") from error


def clean(folder: Path) -> None:
    """Remove what killed processes left half written."""
    if folder.is_dir():
        remove_stale_temporaries(folder)


def _complete(folder: Path) -> list[Path]:
    return [path.with_suffix(".safetensors") for path in sorted(folder.glob("step-*.json"))]
