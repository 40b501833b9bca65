"""A dictionary on disk: `sae.safetensors` (weights, standardiser) and `sae.json` (what they are). No pickle."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmma.artifacts.files import atomic_path, read_json, sha256_of, write_json
from cmma.errors import ArtifactError, ConfigError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import CLASSES
from cmma.sae.config import SAEConfig
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.parallel import whole_state

FORMAT = "cmma-sae"
SCHEMA = 2
"""Raised when the meaning of a field or tensor changes."""
WEIGHTS, DESCRIPTION = "sae.safetensors", "sae.json"


def save_sae(sae: SparseAutoencoder, folder: Path) -> None:
    """Write a dictionary. Weights first, then the description with their sha256: a killed save never passes for whole.

    All processes of the dictionary's mesh have to call it; rank 0 writes.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    tensors = whole_state(sae)
    if sae.mesh.rank != 0:
        return
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(folder / DESCRIPTION, {
        "format": FORMAT, "schema": SCHEMA, "d": sae.d, "blocks": list(sae.standardiser.blocks),
        "config": asdict(sae.config), "sha256": sha256_of(folder / WEIGHTS),
    })


def load_own(folder: Path, device: str = "cpu") -> SparseAutoencoder:
    """Read a dictionary that `save_sae` wrote, or the folder of a `train-sae` artifact.

    Raises:
        ArtifactError: a file is missing, damaged or of another schema; a key is unknown or missing; a tensor has the
            wrong shape or values that are not finite. The message names it.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactError(f"there is no {name} in {folder}; it should be the folder of a trained dictionary")
    description = _checked(read_json(folder / DESCRIPTION), folder / DESCRIPTION)
    path = folder / WEIGHTS
    if sha256_of(path) != description["sha256"]:
        raise ArtifactError(f"{path} is damaged: its sha256 is not the one in {DESCRIPTION}; train or copy it again")
    try:
        tensors = load_file(path, device=device)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file ({error}); train or copy it again") from error
    with torch.device("meta"):  # shapes without memory or random draws
        config, blocks = _config(description["config"], folder / DESCRIPTION), description["blocks"]
        sae = CLASSES[config.arch](config, description["d"], Standardiser.identity(blocks))
    _check_tensors(tensors, sae.state_dict(), path)
    sae.load_state_dict(tensors, assign=True)
    return sae.eval()


def _checked(description: Any, path: Path) -> dict[str, Any]:
    expected = {"format": str, "schema": int, "d": int, "blocks": list, "config": dict, "sha256": str}
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ArtifactError(f"{path} does not describe a cmma dictionary: its format is not {FORMAT}")
    if description.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} has schema {description.get('schema')}; this version of cmma reads {SCHEMA}")
    _same_names(description, expected, path)
    for key, kind in expected.items():
        if not isinstance(description[key], kind):
            raise ArtifactError(f"{path}: {key} should be of type {kind.__name__}")
    if sum(description["blocks"]) != description["d"]:
        raise ArtifactError(f"{path}: blocks {description['blocks']} do not add up to d = {description['d']}")
    return description


def _config(values: dict[str, Any], path: Path) -> SAEConfig:
    _same_names(values, [entry.name for entry in fields(SAEConfig)], path)
    try:
        return SAEConfig(**values)
    except (ConfigError, TypeError) as error:
        raise ArtifactError(f"{path}: {error}") from error


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    _same_names(tensors, expected, path)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ArtifactError(f"{path}: {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)}")
        if tensor.dtype != expected[name].dtype:
            raise ArtifactError(f"{path}: {name} is {tensor.dtype}, expected {expected[name].dtype}")
        if not tensor.isfinite().all():
            raise ArtifactError(f"{path}: {name} holds values that are not finite")


def _same_names(found: Any, expected: Any, path: Path) -> None:
    if unknown := sorted({*found} - {*expected}):
        raise ArtifactError(f"{path}: unknown key {unknown[0]}")
    if missing := sorted({*expected} - {*found}):
        raise ArtifactError(f"{path}: missing key {missing[0]}")
