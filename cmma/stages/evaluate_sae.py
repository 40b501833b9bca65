"""evaluate-sae: how good a dictionary is, what its codes of image and text share, what the model does when spliced."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from cmma.activations.reader import ShardReader
from cmma.artifacts.store import Artifact
from cmma.config import load_group
from cmma.data.tars import load_samples
from cmma.errors import ConfigError, DataError, MissingParent
from cmma.evaluation.embeddings import Embeddings, embed
from cmma.evaluation.paired import (
    concept_metrics,
    modality_scores,
    pair_metrics,
    plain,
    seed_agreement,
    shared_latents,
)
from cmma.evaluation.spliced import MEAN, REFERENCES, ZERO, behaviours, constant, reconstruct, splice_in
from cmma.features.pairing import strangers
from cmma.features.pooling import PairPool, PooledPairs
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import MOST_MATCHED
from cmma.sae.interchange.load import load_sae
from cmma.sae.metrics import SAEMetrics, measure_together
from cmma.stages.keys import Keys
from cmma.stages.prepare_data import tars_of
from cmma.stages.runner import Stage, outputs_folder
from cmma.stages.splits import load_split, resolve_split
from cmma.statistics.bootstrap import Interval

Row = dict[str, Any]
TRAINED, UNTRAINED, SHUFFLED = "dictionary", "untrained", "shuffled pairs"
_QUALITY = (
    "fvu", "fvu_visual", "fvu_textual", "l0_visual", "l0_textual", "gini_visual", "gini_textual", "mass_gini",
    "cosine_visual", "cosine_textual", "dead_fraction",
)  # fmt: skip
_HEADLINE = ("modality_share", "code_cosine", "support_jaccard")
_SCORE_BINS, _RECORDS_AT_ONCE = 20, 2048


@dataclass(frozen=True)
class _Measured:
    """A dictionary with its sums and its pairs over the held-out records; the pairs may be none."""

    sae: SparseAutoencoder
    metrics: SAEMetrics
    pairs: PooledPairs


def run(stage: Stage) -> dict[str, Any]:
    """Measure the dictionary beside its controls; summary: headline numbers, and what was not measured and why."""
    config, artifact = stage.config, stage.artifact
    second = _second_seed(stage)
    sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)
    untrained = build_sae(sae.config, sae.d, sae.standardiser, config.seed).to(stage.device).eval()
    trained, control = _measure(stage, sae, untrained)

    found = {TRAINED: _quality(trained.metrics), UNTRAINED: _quality(control.metrics)}
    not_measured = _add_pairs(stage, trained, control, second, found)
    spliced: list[Row] = []
    if config.sae_metric.splice_samples:
        not_measured |= _add_spliced(stage, trained, untrained, spliced)
    pairs = [_row(interval, condition=c, metric=m) for c, of in found.items() for m, interval in of.items()]
    latents = _latent_table(trained.metrics)
    artifact.write_table("pairs.parquet", pd.DataFrame(pairs))
    artifact.write_table("spliced.parquet", pd.DataFrame(spliced))
    artifact.write_table("latents.parquet", latents)
    return {
        "arch": sae.config.arch, "layer": config.sae_layer(), **trained.metrics.summary(),
        **{name: found[TRAINED][name].as_dict()["value"] for name in _HEADLINE if name in found[TRAINED]},
        "recovered": {
            row["metric"]: row["value"] for row in spliced
            if (row["condition"], row["tokens"]) == (TRAINED, "all") and row["metric"].endswith(REFERENCES[MEAN])
        },
        "dead_fraction_after": _dead_curve(trained.metrics),
        "frequency_histogram": trained.metrics.frequency_histogram(),
        "modality_histogram": np.histogram(latents["modality_score"].dropna(), _SCORE_BINS, (0, 1))[0].tolist(),
        "not_measured": not_measured,
    }


def _second_seed(stage: Stage) -> Artifact | None:
    """The dictionary that differs in its seed alone.

    Raises:
        MissingParent: it is not there; the message is the command that trains it.
        ConfigError: an imported dictionary, which has no seed, or one that is too large to be matched.
    """
    seed = stage.config.sae_metric.second_seed
    if seed is None:
        return None
    if stage.config.imported.source:
        raise ConfigError(f"sae_metric.second_seed={seed}: an imported dictionary has no seed; leave it out")
    n_latents = stage.config.sae.n_latents
    if n_latents > MOST_MATCHED:
        raise ConfigError(f"sae_metric.second_seed={seed}: at most {MOST_MATCHED} latents can be matched with those of "
                          f"another seed, and sae.n_latents={n_latents}; leave it out")
    key = Keys(replace(stage.config, seed=seed)).key("train-sae")
    artifact = Artifact(outputs_folder(stage.config), "train-sae", key)
    if not artifact.finished:
        words = [word for word in stage.overrides if not word.startswith(("seed=", "sae_metric."))]
        command = shlex.join(["cmma", "train-sae", *words, f"seed={seed}"])
        raise MissingParent(f"sae_metric.second_seed={seed} needs train-sae {key}, which is not there; run: "
                            f"{command}")
    return artifact


# Held-out records. ---------------------------------------------------------------------------------------------------


def _measure(stage: Stage, *saes: SparseAutoencoder) -> list[_Measured]:
    """Dictionaries over the held-out records, which are read once."""
    reader = ShardReader(stage.parents["cache-activations"], stage.config.sae_layer())
    pools = [PairPool(stage.config.sae_metric.pair_samples, sae.n_latents, sae.d) for sae in saes]
    metrics = measure_together(saes, reader.held_out(_RECORDS_AT_ONCE), [pool.add for pool in pools])
    return [_Measured(sae, of, pool.pairs()) for sae, of, pool in zip(saes, metrics, pools, strict=True)]


def _quality(metrics: SAEMetrics) -> dict[str, Interval]:
    summary = metrics.summary()
    n_records = int(summary["n_records"])
    numbers = {name: plain(summary[name], n_records) for name in _QUALITY if name in summary}
    return numbers | {"modality_share": shared_latents(modality_scores(metrics))}


def _add_pairs(
    stage: Stage, trained: _Measured, control: _Measured, second: Artifact | None,
    found: dict[str, dict[str, Interval]],
) -> dict[str, str]:
    """Add the metrics of pairs with their floors and controls; returns what is not measured and why."""
    settings, n = stage.config.sae_metric, len(trained.pairs)
    if n < 2:
        return {"pairs": f"{n} held-out samples have visual and textual records; raise activations.held_out"}
    shuffled = replace(trained, pairs=trained.pairs.with_texts_of(strangers(n, stage.config.seed)))
    found[SHUFFLED] = {}
    for condition, of in ((TRAINED, trained), (UNTRAINED, control), (SHUFFLED, shuffled)):
        found[condition] |= pair_metrics(of.sae, of.pairs, settings.block, settings.n_bootstrap)
    if second is not None:
        other, = _measure(stage, load_sae(second.folder).to(stage.device))
        agreement = seed_agreement(trained.sae, trained.pairs, other.sae, other.pairs, settings.n_bootstrap)
        found |= {f"two seeds, {modality.name.lower()}": numbers for modality, numbers in agreement.items()}
    return _add_concepts(stage, trained.pairs, control.pairs, found)


def _add_concepts(
    stage: Stage, pairs: PooledPairs, control: PooledPairs, found: dict[str, dict[str, Interval]]
) -> dict[str, str]:
    """Add monosemanticity by an encoder that is not the model; returns what is not measured and why."""
    config, settings = stage.config, stage.config.sae_metric
    spec = ModelSpec(**load_group("model", settings.encoder))
    if spec.name == config.model.name:
        return {"monosemanticity": f"{spec.name} is the model itself; set sae_metric.encoder to another dual encoder"}
    keys = stage.parents["cache-activations"].read_table("samples.parquet").set_index("sample")["key"]
    data = stage.parents["prepare-data"]
    try:
        encoder = load_model(spec, stage.device)
        tars = tars_of(data, resolve_split(data, config.activations.split))
        samples = load_samples(tars, keys.loc[pairs.sample_N.tolist()].tolist())
        embeddings = embed(encoder, samples, batch_size=settings.batch_size)
    except DataError as error:
        return {"monosemanticity": str(error)}
    reads_captions = config.text() == "caption" or config.model.family in ("clip", "stable_diffusion")
    other = strangers(len(pairs), config.seed).numpy()
    shuffled = Embeddings(embeddings.image_ND[other], embeddings.text_ND[other], embeddings.encoder)
    found[TRAINED] |= concept_metrics(pairs, embeddings, reads_captions)
    found[UNTRAINED] |= concept_metrics(control, embeddings, reads_captions)
    found[SHUFFLED] |= concept_metrics(pairs, shuffled, reads_captions)
    return {}


def _latent_table(metrics: SAEMetrics) -> pd.DataFrame:
    """One row per latent: feature, modality_score, frequency_visual, frequency_textual."""
    frequency_MK = (metrics.fired_MK / metrics.count_M[:, None]).cpu().numpy()
    return pd.DataFrame({
        "feature": np.arange(frequency_MK.shape[1]), "modality_score": modality_scores(metrics).numpy(),
        "frequency_visual": frequency_MK[0], "frequency_textual": frequency_MK[1],
    })


def _dead_curve(metrics: SAEMetrics) -> dict[str, float]:
    """Dead fraction by how many records it is judged on: the powers of ten, and all."""
    seen = int(metrics.count_M.sum())
    n_records = [*(10**power for power in range(2, int(math.log10(seen)) + 1)), seen]
    return dict(zip(map(str, n_records), metrics.dead_fraction_after(n_records), strict=True))


# The running model. --------------------------------------------------------------------------------------------------


def _add_spliced(stage: Stage, of: _Measured, untrained: SparseAutoencoder, rows: list[Row]) -> dict[str, str]:
    """Add the rows of every behaviour of the model; returns what is not measured and why."""
    config, settings = stage.config, stage.config.sae_metric
    samples = load_split(stage.parents["prepare-data"], settings.split, 0, settings.splice_samples)
    model = load_model(config.model, stage.device)
    mean_MD = of.metrics.mean_MD.to(of.sae.W_dec)
    replacements = {
        TRAINED: reconstruct(of.sae), UNTRAINED: reconstruct(untrained),
        MEAN: constant(mean_MD), ZERO: constant(torch.zeros_like(mean_MD)),
    }
    try:
        measured_by = behaviours(model, samples, settings.block)
    except DataError as error:
        return {"spliced": str(error)}
    for behaviour, queries in measured_by:
        spliced = splice_in(model, config.sae_layer(), behaviour, queries, replacements, settings.batch_size)
        rows += [
            _row(interval, tokens=tokens, condition=condition, metric=metric)
            for tokens, condition, metric, interval in spliced.rows(settings.n_bootstrap)
        ]
    return {}


def _row(interval: Interval, **names: str) -> Row:
    return {**names, **interval.as_dict()}
