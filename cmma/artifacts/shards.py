"""Activation shards: one safetensors file per chunk, with a sidecar (`docs/artifacts.md`, Sidecar)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmma.artifacts.files import atomic_path, sha256_of, write_json
from cmma.artifacts.store import Artifact
from cmma.errors import ArtifactError

if TYPE_CHECKING:
    import torch

_DTYPES = {"torch.float64": "F64", "torch.float32": "F32", "torch.bfloat16": "BF16", "torch.int64": "I64",
           "torch.int32": "I32", "torch.int8": "I8"}


class ShardWriter:
    """The one writer of one rank."""

    def __init__(self, artifact: Artifact, rank: int = 0) -> None:
        self._folder = artifact.folder / "shards"
        self._rank = rank
        self._done = {info["chunk"] for info in artifact.sidecars()}

    def done(self, chunk: int) -> bool:
        """True when the chunk's shard is complete, whoever wrote it."""
        return chunk in self._done

    def write(self, chunk: int, tensors: Mapping[str, torch.Tensor], rows: int, cursor: dict[str, int]) -> None:
        """Write shard and sidecar of a chunk, in this order, each atomically."""
        from safetensors.torch import save_file

        path = self._folder / f"r{self._rank:05d}-{chunk:06d}.safetensors"
        with atomic_path(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        seal(path, chunk=chunk, rank=self._rank, rows=rows, cursor=cursor, tensors={
            name: {"dtype": _DTYPES[str(tensor.dtype)], "shape": list(tensor.shape)} for name, tensor in tensors.items()
        })
        self._done.add(chunk)


def seal(path: Path, *, chunk: int, rank: int, rows: int, sha256: str | None = None, **more: Any) -> None:
    """Write the sidecar that declares a shard complete."""
    write_json(path.with_name(path.name + ".json"), {
        "file": path.name, "chunk": chunk, "rank": rank, "rows": rows, "bytes": path.stat().st_size,
        "sha256": sha256 or sha256_of(path), **more,
    })


def read_shard(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """Some tensors of one shard.

    Raises:
        ArtifactError: the file is truncated, damaged or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"shard {path} cannot be read ({error}); run `cmma verify`, then remove its artifact folder and run again"
        ) from error
