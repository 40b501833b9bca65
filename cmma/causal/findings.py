"""What every trace method gives: tables, tensors, headline numbers, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from PIL import Image
from torch import Tensor

from cmma.figures import Figure
from cmma.sae.architectures.base import SparseAutoencoder


@dataclass(frozen=True)
class Dictionary:
    """A dictionary, and the layer whose records it reads."""

    sae: SparseAutoencoder
    layer: int


@dataclass(frozen=True, eq=False)
class Findings:
    """Result of one method of `cmma trace`.

    Attributes:
        summary: headline numbers, JSON-like; NaN becomes null.
        tables: name → table, stored as NAME.parquet.
        figures: what the report draws.
        tensors: stored together as trace.safetensors.
        images: name → picture, stored as images/NAME.png; a `Gallery` names them.
    """

    summary: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    figures: tuple[Figure, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    images: Mapping[str, Image.Image] = field(default_factory=dict)
