"""train-sae: train one dictionary on the cached activations of one layer."""

from __future__ import annotations

import shutil
from typing import Any

from cmma.activations.reader import ShardReader
from cmma.sae.architectures.registry import build_sae
from cmma.sae.io import save_sae
from cmma.sae.mesh import Mesh
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import held_out_metrics, train
from cmma.sae.training.parallel import spread
from cmma.stages.metrics_log import MetricsLog
from cmma.stages.runner import Stage


def run(stage: Stage) -> dict[str, Any]:
    """Train, save and evaluate on held-out samples; summary: FVU, L0 per modality, dead fraction, …"""
    config, artifact = stage.config, stage.artifact
    layer = config.sae_layer()
    reader = ShardReader(stage.parents["cache-activations"], layer)
    mesh = Mesh(stage.rank, stage.world, config.launch.tp)
    sae = spread(build_sae(config.sae, reader.width, Standardiser.fit(reader), config.seed), mesh).to(stage.device)
    with MetricsLog(artifact.path("metrics.jsonl"), config, stage.rank) as log:
        train(sae, reader, config.optim, artifact.path("checkpoint"), log, config.seed)
    save_sae(sae, artifact.folder)
    measured = held_out_metrics(sae, reader, config.optim.batch)
    if stage.rank != 0:
        return {}
    shutil.rmtree(artifact.path("checkpoint"), ignore_errors=True)
    return {
        "arch": config.sae.arch, "layer": layer, "n_latents": config.sae.n_latents, "width": reader.width,
        "expansion": config.sae.n_latents / reader.width, "seed": config.seed, **measured,
    }
