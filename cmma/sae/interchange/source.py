"""From a folder or a repository on the hub to a folder with one dictionary."""

from __future__ import annotations

import re
from pathlib import Path

from cmma.errors import ArtifactError

FILES = ("cfg.json", "sae.safetensors", "sae_weights.safetensors", "config.json", "ae.pt", "sae.json")
"""What a dictionary is made of, in any of the formats."""
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_folder(source: str | Path, subfolder: str = "", revision: str | None = None) -> Path:
    """The folder of a dictionary, downloaded if it is on the hub and not in the cache.

    Only the files of a dictionary are downloaded, never a whole repository.

    Args:
        source: folder, or `owner/name` on the Hugging Face hub. An existing folder goes first.
        subfolder: inside the source.
        revision: of the repository.

    Raises:
        ArtifactError: there is no such folder or repository, or the hub cannot be reached.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not _REPOSITORY.fullmatch(str(source)):
            raise ArtifactError(f"there is no folder {source}; name one, or a repository on the hub (owner/name)")
        folder = _download(str(source), subfolder, revision)
    folder = folder / subfolder
    if not folder.is_dir():
        raise ArtifactError(f"{source} has no folder {subfolder}{_inside(Path(source))}")
    if not any((folder / name).is_file() for name in FILES) and (inside := _inside(folder)):
        raise ArtifactError(f"{folder} is not the folder of one dictionary{inside}; name one with subfolder=")
    return folder


def _inside(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return f"; it holds {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else ""


def _download(repository: str, subfolder: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"{subfolder.strip('/')}/{name}" if subfolder else name for name in FILES]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ArtifactError(f"{repository} is neither a folder nor to be had from the hub ({reason}); copy it here "
                            "and name the folder") from error
