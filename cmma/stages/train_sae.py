"""train-sae: train one dictionary on the cached activations of one layer."""

from __future__ import annotations

import shutil
from typing import Any

from cmma.activations.reader import ShardReader
from cmma.sae.architectures.registry import build_sae
from cmma.sae.io import save_sae
from cmma.sae.metrics import evaluate_sae
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train
from cmma.stages.metrics_log import MetricsLog
from cmma.stages.runner import Stage


def run(stage: Stage) -> dict[str, Any]:
    """Train, save and evaluate on held-out samples; summary: FVU, L0 per modality, dead fraction, …"""
    config, artifact = stage.config, stage.artifact
    layer = config.sae_layer()
    reader = ShardReader(stage.parents["cache-activations"], layer)
    sae = build_sae(config.sae, reader.width, Standardiser.fit(reader), config.seed).to(stage.device)
    with MetricsLog(artifact.path("metrics.jsonl"), config, stage.rank) as log:
        train(sae, reader, config.optim, artifact.path("checkpoint"), log, config.seed, stage.rank, stage.world)
    if stage.rank != 0:
        return {}
    save_sae(sae, artifact.folder)
    shutil.rmtree(artifact.path("checkpoint"), ignore_errors=True)
    measured = evaluate_sae(sae, reader.held_out(config.optim.batch))
    return {
        "arch": config.sae.arch, "layer": layer, "n_latents": config.sae.n_latents, "width": reader.width,
        "expansion": config.sae.n_latents / reader.width, "seed": config.seed, **measured,
    }
