"""From a folder or a repository on the hub to a folder with one dictionary."""

from __future__ import annotations

import re
from pathlib import Path

from cmma.errors import ArtifactError, ConfigError

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
        ConfigError: as `local_folder`. ArtifactError: the hub cannot be reached, or has no such repository.
    """
    local = local_folder(source, subfolder)
    return _checked(_download(str(source), subfolder, revision), subfolder) if local is None else local


def local_folder(source: str | Path, subfolder: str = "") -> Path | None:
    """The folder of a dictionary on this machine; None when `source` can only be a repository on the hub.

    Raises:
        ConfigError: it is neither, or there is no such subfolder, or several dictionaries and no subfolder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(folder, subfolder)
    if _REPOSITORY.fullmatch(str(source)):
        return None
    raise ConfigError(f"there is no folder {source}; name one, or a repository on the hub (owner/name)")


def dictionary_files(folder: Path) -> list[Path]:
    """The files of a dictionary that are there."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def _checked(root: Path, subfolder: str) -> Path:
    folder = root / subfolder
    if not folder.is_dir():
        raise ConfigError(f"{root} has no folder {subfolder}{_inside(root)}")
    if not dictionary_files(folder) and (inside := _inside(folder)):
        raise ConfigError(f"{folder} is not the folder of one dictionary{inside}; name one with subfolder=")
    return folder


def _inside(folder: Path) -> str:
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
