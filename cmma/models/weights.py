"""Where weights lie, and whether they are whole. One line tells what is missing and what to do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cmma.errors import ConfigError, DataError
from cmma.models.spec import BUILTIN, ModelSpec, model_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_dtype(name: str) -> torch.dtype:
    """The torch type called `name`. Raises ConfigError with the valid names."""
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown; valid are {', '.join(DTYPES)}")
    return DTYPES[name]


def weights_folder(
    spec: ModelSpec, repository: str, patterns: Sequence[str], parts: Sequence[str] = ("",)
) -> Path:
    """The folder that holds the configuration and weights of `spec` ("path" or "hub"), checked to be whole.

    Args:
        spec: what to load.
        repository: hub id, used when `spec.weights` is "hub".
        patterns: glob patterns of the files that are needed from the hub.
        parts: subfolders with weights; "" is the folder itself.
    """
    folder = _download(spec, repository, patterns) if spec.weights == "hub" else _local(spec)
    for part in parts:
        check_safetensors(folder / part, spec.name)
    return folder


def check_safetensors(folder: Path, model: str) -> None:
    """Open every safetensors file of `folder` and its shard index. Raises DataError for the first that is not whole."""
    advice = "copy or download the folder again"
    shards = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(named - {shard.name for shard in shards}):
            raise DataError(f"{model}: {folder} lacks {', '.join(missing)}, which {index.name} names; {advice}")
    if not shards:
        raise DataError(f"{model}: {folder} holds no .safetensors file; {advice} (pickled weights are never read)")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt"):
                pass
        except SafetensorError as error:
            raise DataError(f"{model}: {shard} is truncated or damaged ({error}); {advice}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator seeded by `seed`, leaving the global CPU generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def drawing(spec: ModelSpec, device: str) -> Iterator[None]:
    """Modules made inside have random weights, a function of `spec.seed` alone; on device "meta" they have none.

    They are drawn on the CPU whatever the device, so that a seed means the same weights everywhere.
    """
    with torch.device("meta" if device == "meta" else "cpu"), seeded(spec.seed):
        yield


@contextmanager
def loading(spec: ModelSpec, source: Path | str, kind: str) -> Iterator[None]:
    """What a library's loader raises becomes one DataError that names the source and the kind of model."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{spec.name}: {source} cannot be loaded as a {kind}: {_first_line(error)}") from error


def from_transformers(
    spec: ModelSpec, model: Any, processor: Any, patterns: Sequence[str], kind: str, **options: Any
) -> tuple[Any, Any]:
    """A model and its processor from the hub or a folder through transformers, without remote code or pickles.

    Args:
        spec: what to load.
        model, processor: classes with `from_pretrained`.
        patterns: as in `weights_folder`.
        kind: what the model is, for errors.
        options: of `model.from_pretrained`.

    Raises:
        DataError: there is no such folder, it cannot be loaded, or tensors are missing.
    """
    folder = weights_folder(spec, spec.source, patterns)
    local = {"trust_remote_code": False, "local_files_only": True}
    with loading(spec, folder, kind):
        module, report = model.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **local, **options)
        processor = processor.from_pretrained(folder, **local)
    if missing := sorted(report["missing_keys"]):
        raise DataError(
            f"{spec.name}: the weights in {folder} lack {len(missing)} tensors ({', '.join(missing[:3])}, …); "
            "copy or download the folder again"
        )
    return module, processor


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence warnings of the libraries' loaders, such as open_clip's that random weights are random."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _local(spec: ModelSpec) -> Path:
    folder = model_folder(spec.source)
    if folder.is_dir():
        return folder
    if spec.source.startswith(BUILTIN):
        shipped = ", ".join(sorted(path.name for path in folder.parent.glob("*/"))) or "none"
        raise DataError(f"{spec.name}: no model {folder.name} ships with cmma; shipped are {shipped}")
    raise DataError(
        f"{spec.name}: model folder {folder} does not exist; set model.source to a folder with the model's "
        "configuration and .safetensors files"
    )


def _download(spec: ModelSpec, repository: str, patterns: Sequence[str]) -> Path:
    """Fetch the needed files of a hub repository, or find them in the local hub cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=spec.revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = _first_line(error).rstrip(".")
        raise DataError(
            f"{spec.name}: cannot get {repository} (revision {spec.revision or 'default'}) from the hub: {reason}. "
            "Check the network, the id and access rights; or download it elsewhere and set model.weights=path "
            "model.source=FOLDER; or model.weights=random"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
