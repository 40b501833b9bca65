"""build-cmig: the Cross-Modal Interaction Graph (paper, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from cmma.artifacts.files import atomic_path
from cmma.causal.intervening import queries_for
from cmma.causal.queries import Query, assert_disjoint
from cmma.causal.rivals import prepare_readout
from cmma.cmig.between import Later, between_table
from cmma.cmig.config import CMIGConfig
from cmma.cmig.graph import build_graph, interaction_graph, write_graphml, write_json
from cmma.cmig.measuring import Interactions
from cmma.cmig.screening import choose_pairs
from cmma.cmig.selection import feature_scores, near_duplicates, select_features, stratified
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.interchange.load import load_sae
from cmma.stages.chunks import in_chunks
from cmma.stages.runner import Stage
from cmma.stages.splits import measured_samples

_POOL = 4096
"""Best ranked features among which near-duplicates are looked for: K² of them are compared."""


def run(stage: Stage) -> dict[str, Any]:
    """Choose features, ablate them alone and in pairs, test every edge; summary: the numbers of section 5.2."""
    config, artifact = stage.config.cmig, stage.artifact
    model = load_model(stage.config.model, stage.device)
    sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)
    samples = measured_samples(stage.parents["prepare-data"], stage.config)
    half = len(samples) // 2
    choosing = queries_of(model, samples[:half], config.n_selection_samples, config.seed)
    measuring = queries_of(model, samples[half:], config.n_samples, config.seed)
    assert_disjoint(choosing, measuring)

    features = _features(stage, model, sae, choosing)
    later = [_later(stage, model, layer, choosing) for layer in config.to_layers]
    readout, measuring = prepare_readout(model, measuring, config.readout)
    measured = Interactions(
        model, sae, stage.config.sae_layer(), tuple(sorted(features["feature"].tolist())), readout, config.tokens,
        config.rows_at_once,
    )  # fmt: skip

    def shared(compute: Callable[[list[Query]], dict[str, Tensor]], first: int = 0) -> list[dict[str, Tensor]]:
        n, size = len(measuring), config.samples_at_once
        return in_chunks(stage, lambda start, stop: compute(measuring[start:stop]), n, size, first)

    pairs = None
    if config.pairs_per_feature:
        score_KK = torch.stack([chunk["screen_KK"] for chunk in shared(measured.screen)]).sum(dim=0).numpy()
        n_first = config.pairs_per_feature * len(features)
        pairs = choose_pairs(score_KK / len(measuring), n_first, config.random_pairs, config.seed)
    # Chunks of effects are numbered above those of the screen.
    chunks = shared(lambda queries: measured.effects(queries, pairs), first=len(measuring))
    found = [
        shared(partial(measured.later, later=each), first=(2 + index) * len(measuring))
        for index, each in enumerate(later)
    ]
    if stage.rank:
        return {}
    effects, cost = measured.joined(chunks, pairs)
    graph = build_graph(effects, features, config, pairs)
    artifact.write_table("nodes.parquet", graph.nodes)
    artifact.write_table("edges.parquet", graph.edges)
    between = _between(config, measured.features, later, found)
    if between is not None:
        artifact.write_table("between.parquet", between)
    network = interaction_graph(graph.nodes, graph.edges, config.alpha)
    with atomic_path(artifact.path("graph.graphml")) as temporary:
        write_graphml(network, temporary)
    with atomic_path(artifact.path("graph.json")) as temporary:
        write_json(network, temporary)
    significant = None if between is None else int((between["q"] < config.alpha).sum())
    return {
        **graph.numbers, "readout": readout.name, "cost": cost._asdict(), "layer": measured.layer,
        "to_layers": list(config.to_layers), "significant_between": significant,
    }  # fmt: skip


def _later(stage: Stage, model: MultimodalModel, layer: int, choosing: list[Query]) -> Later:
    sae = load_sae(stage.parents[f"train-sae:{layer}"].folder).to(stage.device)
    features = _features(stage, model, sae, choosing, layer)
    return Later(sae, layer, tuple(sorted(features["feature"].tolist())))


def _between(
    config: CMIGConfig, sources: tuple[int, ...], later: list[Later], found: list[list[dict[str, Tensor]]]
) -> pd.DataFrame | None:
    """The edges to every later layer; q is corrected layer by layer."""
    tables = []
    for each, chunks in zip(later, found, strict=True):
        clean_NJ, under_NKJ = (torch.cat([c[name] for c in chunks]).numpy() for name in ("clean_NJ", "under_NKJ"))
        draws = (config.permutations, config.max_permutations, config.resamples, config.seed)
        tables.append(between_table(clean_NJ, under_NKJ, sources, each, *draws))
    return pd.concat(tables, ignore_index=True) if tables else None


def _features(
    stage: Stage, model: MultimodalModel, sae: SparseAutoencoder, choosing: list[Query], later: int | None = None
) -> pd.DataFrame:
    """The features of the graph, or of a later layer, chosen by one worker and stored, so that all have the same."""
    config, artifact = stage.config.cmig, stage.artifact
    layer = stage.config.sae_layer() if later is None else later
    name = "features.parquet" if later is None else f"features_{later}.parquet"
    if stage.rank == 0 and not artifact.path(name).is_file():
        scores = feature_scores(model, sae, layer, choosing, config.readout, config.tokens)
        if later is None:
            scores = scores.merge(stage.parents["interpret"].read_table("features.parquet")[["feature", "class"]])
        pool = scores.nlargest(_POOL, config.ranking)["feature"].tolist()
        groups = near_duplicates(sae.feature_directions[pool], pool, config.duplicates)
        quotas = config.quotas if later is None else None  # classes are known where `interpret` ran
        chosen = select_features(scores, config.n_features, config.ranking, config.min_density, quotas, groups)
        artifact.write_table(name, chosen)
    if stage.world > 1:
        dist.barrier()
    return artifact.read_table(name)


def queries_of(model: MultimodalModel, samples: list[Sample], n: int, seed: int) -> list[Query]:
    """One query per sample, spread over kinds of question; captions for dual encoders and for data without questions.

    Raises:
        DataError: fewer than two samples.
    """
    questions = queries_for(model, samples)
    if len(questions) < 2:
        raise DataError(f"{len(questions)} held-out samples are too few to measure effects on; prepare more data")
    kinds = [_kind(query) for query in questions]
    return [questions[index] for index in stratified(kinds, n, seed)]


def _kind(query: Query) -> str:
    return next((entry.kind for entry in query.sample.questions if entry.question == query.text), "caption")
