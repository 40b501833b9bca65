"""train-sae: the dictionary of one layer, trained on cached activations or imported."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from cmma.activations.reader import ShardReader
from cmma.errors import CmmaError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.interchange.load import import_sae
from cmma.sae.io import save_sae
from cmma.sae.mesh import Mesh
from cmma.sae.metrics import evaluate_sae
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import held_out_metrics, train_together
from cmma.sae.training.parallel import spread
from cmma.sae.training.run import Run
from cmma.stages.metrics_log import MetricsLog
from cmma.stages.runner import Stage

_IMPORTED_BATCH = 2048
"""Records that an imported dictionary is measured on at once: nothing of `optim` is in its key."""


def run(stage: Stage) -> dict[str, Any]:
    """Train or import, save and evaluate on held-out samples; summary: FVU, L0 per modality, dead fraction, …"""
    if stage.config.imported.source:
        return import_dictionary(stage)
    (outcome,) = train_dictionaries([stage])
    if isinstance(outcome, CmmaError):
        raise outcome
    return outcome


def train_dictionaries(stages: Sequence[Stage]) -> Iterator[dict[str, Any] | CmmaError]:
    """Train the dictionaries of several configurations on one pass (`cmma.stages.passes`); rank 0 saves.

    Yields:
        Of each the summary, once it is saved, or why it could not be trained; the others are trained all the same.
    """
    reader = _reader(stages[0])
    standardiser = Standardiser.fit(reader)
    mesh = Mesh(stages[0].rank, stages[0].world, stages[0].config.launch.tp)
    with ExitStack() as logs:
        runs = [_run(stage, reader, copy.deepcopy(standardiser), mesh, logs) for stage in stages]
        train_together(runs)
    trained = [run.sae for run in runs if not run.failure]
    measured = iter(held_out_metrics(trained, reader, stages[0].config.optim.batch))
    for stage, run in zip(stages, runs, strict=True):
        if run.failure:
            yield run.failure
            continue
        save_sae(run.sae, stage.artifact.folder)
        if mesh.rank == 0:
            shutil.rmtree(stage.artifact.path("checkpoint"), ignore_errors=True)
        yield {**_facts(run.sae, stage), "seed": stage.config.seed, **next(measured)}


def _run(stage: Stage, reader: ShardReader, standardiser: Standardiser, mesh: Mesh, logs: ExitStack) -> Run:
    config, artifact = stage.config, stage.artifact
    sae = spread(build_sae(config.sae, reader.width, standardiser, config.seed), mesh).to(stage.device)
    log = logs.enter_context(MetricsLog(artifact.path("metrics.jsonl"), config, stage.rank))
    return Run(sae, reader, config.optim, artifact.path("checkpoint"), log, config.seed)


def import_dictionary(stage: Stage) -> dict[str, Any]:
    """Take over the dictionary that `imported` names; rank 0 does it.

    Raises:
        ConfigError: it cannot be honoured, or is one of other records.
    """
    if stage.rank != 0:
        return {}
    imported, reader = stage.config.imported, _reader(stage)
    sae = import_sae(imported, reader.blocks, stage.device)
    save_sae(sae, stage.artifact.folder)
    measured = evaluate_sae(sae, reader.held_out(_IMPORTED_BATCH))
    source = "/".join(part for part in (imported.source, imported.subfolder) if part)
    return {**_facts(sae, stage), "source": source, "revision": imported.revision, **measured}


def _reader(stage: Stage) -> ShardReader:
    return ShardReader(stage.parents["cache-activations"], stage.config.sae_layer())


def _facts(sae: SparseAutoencoder, stage: Stage) -> dict[str, Any]:
    return {
        "arch": sae.config.arch, "layer": stage.config.sae_layer(), "n_latents": sae.config.n_latents, "width": sae.d,
        "expansion": sae.config.n_latents / sae.d,
    }
