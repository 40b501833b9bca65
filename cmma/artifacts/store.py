"""Open, write and commit artifacts (`docs/artifacts.md`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmma import __version__
from cmma.artifacts.files import atomic_path, read_json, remove_stale_temporaries, sha256_of, write_json, write_text
from cmma.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from PIL import Image

FORMAT = 1
MANIFEST = "manifest.json"


class Artifact:
    """One artifact folder, finished or not.

    Attributes:
        folder: where it lies.
        stage, key: what it is.
    """

    def __init__(self, root: Path, stage: str, key: str) -> None:
        self.stage, self.key = stage, key
        self.folder = root / "artifacts" / stage / key

    @property
    def finished(self) -> bool:
        """True once the manifest, the commit, is there."""
        return (self.folder / MANIFEST).is_file()

    @property
    def started(self) -> bool:
        """True when a run has begun it."""
        return self.folder.is_dir()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The commit record. Raises ArtifactError when damaged."""
        return read_json(self.folder / MANIFEST)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers that the stage put forward, for tables."""
        return self.manifest["summary"]

    def path(self, name: str) -> Path:
        """Path of one of the artifact's files."""
        return self.folder / name

    # Writing -----------------------------------------------------------------------------------------------------

    def start(self, resolved_yaml: str) -> None:
        """Make the folder, clear what dead processes left and put the configuration there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(self.folder)
        write_text(self.path("resolved.yaml"), resolved_yaml)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        write_json(self.path(name), value)

    def write_jsonl(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write one JSON object per line."""
        write_text(self.path(name), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a Parquet file."""
        with atomic_path(self.path(name)) as temporary:
            table.to_parquet(temporary, index=False)

    def write_image(self, name: str, image: Image.Image) -> None:
        """Write a PNG file."""
        with atomic_path(self.path(name)) as temporary:
            image.save(temporary, format="png")

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a safetensors file."""
        from safetensors.torch import save_file

        with atomic_path(self.path(name)) as temporary:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)

    def commit(
        self, *, version: int, config: Mapping[str, Any], parents: Mapping[str, str], summary: Mapping[str, Any],
        device: str, seconds: float,
    ) -> None:
        """Hash every file and write the manifest: from here on the artifact is finished and is never changed."""
        sidecar_hashes = {info["file"]: info["sha256"] for info in self.sidecars()}
        self._drop_unsealed(set(sidecar_hashes))
        for temporary in self.folder.rglob(".*.tmp"):  # of killed processes of other machines
            temporary.unlink()
        files = {}
        for path in self._files():
            known = sidecar_hashes.get(path.name) if path.parent.name == "shards" else None
            files[str(path.relative_to(self.folder))] = {
                "bytes": path.stat().st_size, "sha256": known or sha256_of(path),
            }
        write_json(self.path(MANIFEST), {
            "format": FORMAT, "stage": self.stage, "version": version, "key": self.key, "parents": dict(parents),
            "config": dict(config), "summary": dict(summary), "software": _software(), "device": device,
            "seconds": round(seconds, 2), "files": files,
        })

    # Reading -----------------------------------------------------------------------------------------------------

    def read_json(self, name: str) -> Any:
        """Read one of its JSON files."""
        return read_json(self.path(name))

    def read_table(self, name: str) -> pd.DataFrame:
        """Read one of its Parquet files."""
        import pandas as pd

        try:
            return pd.read_parquet(self.path(name))
        except (OSError, ValueError) as error:
            raise _damaged(self.path(name), error) from error

    def sidecars(self) -> list[dict[str, Any]]:
        """The complete shards, by chunk: a sidecar counts when its shard has the size that it gives."""
        infos = [read_json(path) for path in sorted((self.folder / "shards").glob("*.json"))]
        shards = self.folder / "shards"
        whole = [
            info for info in infos
            if (shards / info["file"]).is_file() and (shards / info["file"]).stat().st_size == info["bytes"]
        ]
        return sorted(whole, key=lambda info: (info["chunk"], info["file"]))

    def _drop_unsealed(self, sealed: set[str]) -> None:
        """Remove shards that a killed rank wrote but never sealed, and that another rank has made anew."""
        for path in self.path("shards").glob("*"):
            if not path.name.startswith(".") and path.name.removesuffix(".json") not in sealed:
                path.unlink()

    def _files(self) -> Iterator[Path]:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name != MANIFEST and not path.name.endswith(".tmp"):
                yield path


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read ({error}); run `cmma verify`, then remove its folder and run again")


def _software() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"cmma": __version__}
    for name in ("torch", "transformers", "open_clip_torch", "diffusers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def list_artifacts(root: Path, stage: str | None = None) -> list[Artifact]:
    """All artifact folders below an outputs folder, by stage and key."""
    base = root / "artifacts"
    stages = [stage] if stage else sorted(path.name for path in base.glob("*") if path.is_dir())
    return [
        Artifact(root, name, path.name) for name in stages for path in sorted((base / name).glob("*")) if path.is_dir()
    ]


def find_artifact(root: Path, key: str) -> Artifact:
    """The artifact whose key starts with `key`.

    Raises:
        ArtifactError: none or several match.
    """
    matches = [artifact for artifact in list_artifacts(root) if artifact.key.startswith(key)]
    if len(matches) != 1:
        found = ", ".join(f"{m.stage}/{m.key}" for m in matches) or "none"
        raise ArtifactError(f"key {key!r} matches {found} below {root}; `cmma ls` lists the keys")
    return matches[0]
