"""M-SAE and the standard SAE (Bricken et al. 2023): dictionaries that were trained on the same cached records."""

from __future__ import annotations

from cmma.baselines.ground import Ground
from cmma.baselines.methods.base import DictionaryMethod
from cmma.sae.architectures.base import SparseAutoencoder


def msae(ground: Ground, sae: SparseAutoencoder) -> DictionaryMethod:
    """The dictionary of the run; its architecture where it is not M-SAE."""
    return DictionaryMethod("M-SAE" if sae.config.arch == "msae" else f"{sae.config.arch} (in place of M-SAE)",
                            ground, sae)


def standard_sae(ground: Ground, sae: SparseAutoencoder) -> DictionaryMethod:
    """ReLU and L1, nothing cross-modal; of the same width, steps and price of sparsity."""
    return DictionaryMethod("standard SAE", ground, sae)
