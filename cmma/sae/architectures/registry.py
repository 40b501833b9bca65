"""From a configuration to a dictionary."""

from __future__ import annotations

from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.msae import MSAE
from cmma.sae.architectures.standard import Standard
from cmma.sae.architectures.topk import TopK
from cmma.sae.config import SAEConfig
from cmma.sae.records import generator
from cmma.sae.standardiser import Standardiser

CLASSES: dict[str, type[SparseAutoencoder]] = {"msae": MSAE, "standard": Standard, "topk": TopK}
"""One entry per file of this package; `cmma.sae.config.ARCHITECTURES` lists the same names without torch."""


def build_sae(config: SAEConfig, d: int, standardiser: Standardiser, seed: int = 0) -> SparseAutoencoder:
    """A fresh dictionary.

    Args:
        config: architecture and objective.
        d: record width.
        standardiser: statistics of the records (`Standardiser.fit`).
        seed: of the initial features.
    """
    return CLASSES[config.arch](config, d, standardiser, generator("sae", seed))
