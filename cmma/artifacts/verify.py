"""Recompute every hash of an artifact (`docs/artifacts.md`, Manifest)."""

from __future__ import annotations

from cmma.artifacts.files import sha256_of
from cmma.artifacts.store import MANIFEST, Artifact
from cmma.errors import ArtifactError


def verify(artifact: Artifact) -> list[str]:
    """One line per file that is damaged, missing or foreign; an empty list when the artifact is whole.

    An unfinished artifact is checked against the sidecars of its complete shards.
    """
    if artifact.finished:
        try:
            listed = artifact.manifest["files"]
        except (ArtifactError, KeyError, TypeError):
            return [f"{artifact.path(MANIFEST)}: not a readable manifest"]
    else:
        try:
            listed = {f"shards/{info['file']}": info for info in artifact.sidecars()}
        except ArtifactError as error:
            return [str(error)]
    problems = []
    for name, expected in listed.items():
        path = artifact.path(name)
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, {expected['bytes']} expected")
        elif sha256_of(path) != expected["sha256"]:
            problems.append(f"{path}: content differs from its sha256")
    if artifact.finished:
        problems += [
            f"{path}: not listed in the manifest" for path in sorted(artifact.folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST and str(path.relative_to(artifact.folder)) not in listed
        ]
    return problems
