"""One file per architecture, and the table that names them. Names are imported when first used."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "build_sae":
        from cmma.sae.architectures.registry import build_sae

        return build_sae
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
