"""train-sae: the dictionary of one layer, trained on cached activations or imported."""

from __future__ import annotations

import shutil
from typing import Any

from cmma.activations.reader import ShardReader
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.interchange.load import import_sae
from cmma.sae.io import save_sae
from cmma.sae.metrics import evaluate_sae
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train
from cmma.stages.metrics_log import MetricsLog
from cmma.stages.runner import Stage

_IMPORTED_BATCH = 2048
"""Records that an imported dictionary is measured on at once: nothing of `optim` is in its key."""


def run(stage: Stage) -> dict[str, Any]:
    """Train or import, save and evaluate on held-out samples; summary: FVU, L0 per modality, dead fraction, …"""
    reader = ShardReader(stage.parents["cache-activations"], stage.config.sae_layer())
    return import_dictionary(stage, reader) if stage.config.imported.source else train_dictionary(stage, reader)


def train_dictionary(stage: Stage, reader: ShardReader) -> dict[str, Any]:
    """Train the configured architecture; rank 0 saves."""
    config, artifact = stage.config, stage.artifact
    sae = build_sae(config.sae, reader.width, Standardiser.fit(reader), config.seed).to(stage.device)
    with MetricsLog(artifact.path("metrics.jsonl"), config, stage.rank) as log:
        train(sae, reader, config.optim, artifact.path("checkpoint"), log, config.seed, stage.rank, stage.world)
    if stage.rank != 0:
        return {}
    save_sae(sae, artifact.folder)
    shutil.rmtree(artifact.path("checkpoint"), ignore_errors=True)
    measured = evaluate_sae(sae, reader.held_out(config.optim.batch))
    return {**_facts(sae, config.sae_layer()), "seed": config.seed, **measured}


def import_dictionary(stage: Stage, reader: ShardReader) -> dict[str, Any]:
    """Take over the dictionary that `imported` names; rank 0 does it.

    Raises:
        ConfigError: it cannot be honoured, or is one of other records.
    """
    if stage.rank != 0:
        return {}
    imported = stage.config.imported
    sae = import_sae(imported, reader.blocks, stage.device)
    save_sae(sae, stage.artifact.folder)
    measured = evaluate_sae(sae, reader.held_out(_IMPORTED_BATCH))
    source = "/".join(part for part in (imported.source, imported.subfolder) if part)
    return {**_facts(sae, stage.config.sae_layer()), "source": source, "revision": imported.revision, **measured}


def _facts(sae: SparseAutoencoder, layer: int) -> dict[str, Any]:
    return {
        "arch": sae.config.arch, "layer": layer, "n_latents": sae.n_latents, "width": sae.d,
        "expansion": sae.n_latents / sae.d,
    }
