"""Checkpoints that a `kill -9` cannot spoil: tensors first, then the JSON that declares them complete.

A checkpoint is `step-XXXXXXXXX.safetensors` with `step-XXXXXXXXX.json`, each written to a temporary name, fsynced and
renamed. The previous one is removed only when the new one is complete. There is no random-generator state in it: every
draw is a function of (seed, step).

Where the latents are spread over tp processes each of them writes its own, into `step-XXXXXXXXX.P-of-TP.safetensors`;
what all hold is in the first part. Any other number of processes reads them back. The headers say where the rows
belong as those of torch.distributed.checkpoint do, whose `HuggingFaceStorageReader` reads the parts too. Its writers
are not used: one leaves a pickle, the other nothing by which a complete checkpoint could be told from a torn one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmma.artifacts.files import atomic_path, read_json, remove_stale_temporaries, write_json
from cmma.errors import ArtifactError
from cmma.sae.mesh import ALONE, Mesh
from cmma.sae.records import rank_slice


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any],
    axes: Mapping[str, int] | None = None, mesh: Mesh = ALONE,
) -> None:
    """Write the checkpoint of a step, then remove the others. All processes of the mesh have to call it.

    Args:
        tensors: what this process holds. state: the rest, plain values.
        axes: which axis of a tensor runs over the latents, for those that have one.
        mesh: who holds which latents.

    Raises:
        ArtifactError: the folder cannot be written; the previous checkpoint is untouched.
    """
    axes, sizes = axes or {}, torch.zeros(mesh.tp, dtype=torch.int64)
    parts = _parts(folder, step, mesh.tp)
    if mesh.dp_rank == 0:
        own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()
               if mesh.tp_rank == 0 or name in axes}
        with atomic_path(parts[mesh.tp_rank]) as temporary:
            save_file(own, temporary, {"DCP_SHARDING_INFO": json.dumps(_offsets(own, axes, mesh))})
        sizes[mesh.tp_rank] = parts[mesh.tp_rank].stat().st_size
    mesh.sum_([sizes], "all")  # after it all parts are there
    if mesh.rank == 0:
        description = folder / f"step-{step:09d}.json"
        write_json(description, {**state, "step": step, "bytes": sizes.tolist()})
        for old in {*folder.glob("step-*.json")} - {description}:
            old.unlink()  # first: without it the tensors are not a checkpoint
        for old in {*folder.glob("step-*.safetensors")} - {*parts}:
            old.unlink()


def load_checkpoint(
    folder: Path, device: str = "cpu", axes: Mapping[str, int] | None = None, mesh: Mesh = ALONE
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete checkpoint, with the latents of this process; None if there is none.

    Args:
        axes, mesh: as in `save_checkpoint`; the mesh need not be the one that wrote it.

    Raises:
        ArtifactError: it is damaged.
    """
    descriptions = sorted(folder.glob("step-*.json"))
    if not descriptions:
        return None
    state = read_json(descriptions[-1])
    try:
        paths = _parts(folder, state["step"], len(state["bytes"]))
        for path, size in zip(paths, state["bytes"], strict=True):
            if path.stat().st_size != size:
                raise ArtifactError(f"{path} is truncated; remove {folder} to train from the start")
        with ExitStack() as stack:
            parts = [stack.enter_context(safe_open(path, framework="pt", device=device)) for path in paths]
            return {name: _own_rows(parts, name, (axes or {}).get(name), mesh) for name in parts[0].keys()}, state  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ArtifactError(f"the checkpoint {descriptions[-1]} is damaged ({error}); remove {folder} to train from "
                            "the start") from error


def clean(folder: Path) -> None:
    """Remove what killed processes left half written."""
    if folder.is_dir():
        remove_stale_temporaries(folder)


def _parts(folder: Path, step: int, n_parts: int) -> list[Path]:
    names = [f".{part}-of-{n_parts}" for part in range(n_parts)] if n_parts > 1 else [""]
    return [folder / f"step-{step:09d}{name}.safetensors" for name in names]


def _offsets(own: Mapping[str, Tensor], axes: Mapping[str, int], mesh: Mesh) -> dict[str, dict[str, list[int]]]:
    """Where the tensors of this process begin in those of the whole dictionary, as DCP writes it."""
    offsets = {name: [0] * tensor.ndim for name, tensor in own.items()}
    for name in axes.keys() & own.keys():
        offsets[name][axes[name]] = mesh.tp_rank * own[name].shape[axes[name]]
    return {name: {"saved_offsets": offset} for name, offset in offsets.items()}


def _own_rows(parts: list[Any], name: str, axis: int | None, mesh: Mesh) -> Tensor:
    """One tensor with this process's latents, from all parts in their order."""
    if axis is None or len(parts) == mesh.tp == 1:
        whole: Tensor = parts[0].get_tensor(name)
        return whole
    slices = [part.get_slice(name) for part in parts]
    size = slices[0].get_shape()[axis]
    own = rank_slice(size * len(parts), mesh.tp_rank, mesh.tp)
    pieces = []
    for part, rows in enumerate(slices):
        start, stop = max(own.start - part * size, 0), min(own.stop - part * size, size)
        if start < stop:
            pieces.append(rows[start:stop] if axis == 0 else rows[:, start:stop])
    return torch.cat(pieces, dim=axis)
