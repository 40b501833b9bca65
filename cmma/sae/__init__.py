"""Sparse autoencoders: architectures, objective, training, metrics, files.

The names below are imported when first used, so that `import cmma.sae` and `cmma.sae.config` stay free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "OptimConfig": "config", "SAEConfig": "config", "preset": "config",
    "ActivationReader": "records", "RecordBatch": "records", "TensorReader": "records", "rank_slice": "records",
    "Standardiser": "standardiser",
    "SAEOutput": "architectures.base", "SparseAutoencoder": "architectures.base", "build_sae": "architectures.registry",
    "Trainer": "training.trainer", "Run": "training.run", "TrainResult": "training.run",
    "train": "training.loop", "train_together": "training.loop",
    "SAEMetrics": "metrics", "evaluate_sae": "metrics",
    "load_sae": "interchange.load", "save_sae": "io",
    "ImportConfig": "interchange.config", "import_sae": "interchange.load",
    "save_saelens": "interchange.export", "save_sparsify": "interchange.export",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
