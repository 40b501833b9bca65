"""Where a dictionary is imported from. No torch, no Hydra."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImportConfig:
    """A dictionary that was trained elsewhere. Where `source` is set, train-sae imports it in place of training."""

    source: str = ""
    """Folder, or repository on the Hugging Face hub (owner/name); empty: nothing is imported."""
    subfolder: str = ""
    """Folder inside the source, where it holds several dictionaries: `layers.24`."""
    revision: str | None = None
    """Branch, tag or commit of the repository; a commit pins it."""
