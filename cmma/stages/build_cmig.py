"""build-cmig: the Cross-Modal Interaction Graph (paper, section 3.1.2)."""

from __future__ import annotations

from typing import Any

from cmma.artifacts.files import atomic_path
from cmma.causal.intervening import queries_for
from cmma.causal.queries import Query, assert_disjoint
from cmma.cmig.ablation import measure_effects
from cmma.cmig.graph import build_graph, interaction_graph, write_graphml, write_json
from cmma.cmig.selection import feature_scores, select_features, stratified
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.sae.interchange.load import load_sae
from cmma.stages.runner import Stage
from cmma.stages.splits import measured_samples


def run(stage: Stage) -> dict[str, Any]:
    """Choose features, ablate them alone and in pairs, test every edge; summary: the numbers of section 5.2."""
    config, artifact = stage.config.cmig, stage.artifact
    layer = stage.config.sae_layer()
    model = load_model(stage.config.model, stage.device)
    sae = load_sae(stage.parents["train-sae"].folder).to(stage.device)
    samples = measured_samples(stage.parents["prepare-data"], stage.config)
    half = len(samples) // 2
    choosing = queries_of(model, samples[:half], config.n_selection_samples, config.seed)
    measuring = queries_of(model, samples[half:], config.n_samples, config.seed)
    assert_disjoint(choosing, measuring)

    scores = feature_scores(model, sae, layer, choosing, config.readout, config.tokens)
    classes = stage.parents["interpret"].read_table("features.parquet")[["feature", "class"]]
    features = select_features(
        scores.merge(classes, on="feature"), config.n_features, config.ranking, config.min_density, config.quotas
    )
    effects, cost = measure_effects(
        model, sae, layer, measuring, features["feature"].tolist(), config.readout, config.tokens,
        config.rows_at_once,
    )
    graph = build_graph(effects, features, config)
    artifact.write_table("nodes.parquet", graph.nodes)
    artifact.write_table("edges.parquet", graph.edges)
    network = interaction_graph(graph.nodes, graph.edges, config.alpha)
    with atomic_path(artifact.path("graph.graphml")) as temporary:
        write_graphml(network, temporary)
    with atomic_path(artifact.path("graph.json")) as temporary:
        write_json(network, temporary)
    return {**graph.numbers, "cost": dict(cost), "layer": layer}


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
