"""An intervention from its configuration: select features, measure their effect on other samples, generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmma.causal.config import InterventionConfig
from cmma.causal.effects import InterventionResult
from cmma.causal.interventions import (
    Images,
    Intervention,
    Texts,
    dose_response,
    generate_images,
    generate_texts,
    run_intervention,
)
from cmma.causal.queries import Query, assert_disjoint, caption_queries, question_queries
from cmma.causal.rivals import prepare_readout
from cmma.causal.selection import Selection, select_features
from cmma.data.samples import Sample
from cmma.errors import DataError
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder

DOSE_CONTROLS = 2
"""Draws of each control at the other strengths: a curve is for looking, the configured strength has them all."""


@dataclass(frozen=True)
class Outcome:
    """Everything that `intervene` measured.

    Attributes:
        selection: how the features were ranked (also where they were given by hand: their ranks are worth seeing).
        result: the intervention at its configured strength.
        doses: the intervention at each of `config.strengths`, with `DOSE_CONTROLS` draws of the controls.
        texts: generated captions (answers, of a model that writes no captions); None where the model does not generate
            or the configuration says so.
        images: images made of the captions, by a diffusion model.
    """

    selection: Selection
    result: InterventionResult
    doses: list[InterventionResult]
    texts: Texts | None
    images: Images | None = None


def intervene(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, samples: Sequence[Sample], config: InterventionConfig
) -> Outcome:
    """Select on the first samples, measure on the others.

    Args:
        samples: the first `selection.n_samples` choose the features; the next `max_samples` measure the effect. Where
            there are fewer, each side gets its proportion.

    Raises:
        DataError: fewer than four samples, or an image on both sides.
    """
    choosing, measuring = divide(samples, config.selection.n_samples, config.max_samples)
    selection_queries, effect_queries = queries_for(model, choosing), queries_for(model, measuring)
    assert_disjoint(selection_queries, effect_queries)
    # A readout that saturates where the model is sure (its log-probabilities are near 0) would show no effect there.
    readout, prepared = prepare_readout(model, [*selection_queries, *effect_queries], config.readout, config.batch_size)
    selection_queries, effect_queries = prepared[: len(selection_queries)], prepared[len(selection_queries) :]

    selection = select_features(
        model, sae, layer, selection_queries, readout, config.selection,
        tokens=config.tokens, batch_size=config.batch_size, seed=config.seed,
    )  # fmt: skip
    features = selection.top(config.n_features) if config.features is None else tuple(config.features)
    intervention = Intervention(
        config.kind, features, config.strength, config.tokens, config.phase, config.keep_error, config.source
    )
    options: dict[str, Any] = {
        "density_K": selection.density_K, "n_controls": config.n_controls,
        "batch_size": config.batch_size, "seed": config.seed,
    }  # fmt: skip
    result = run_intervention(model, sae, layer, effect_queries, intervention, readout, **options)
    curve = options | {"n_controls": min(config.n_controls, DOSE_CONTROLS)}
    doses = dose_response(model, sae, layer, effect_queries, intervention, readout, config.strengths, **curve)
    texts = None
    if config.generate and model.kind == "generative":
        asked = None if model.captions else [query.text for query in effect_queries]
        shown = measuring if model.captions else [query.sample for query in effect_queries]
        texts = generate_texts(
            model, sae, layer, shown, intervention, density_K=selection.density_K, text=asked,
            max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, seed=config.seed,
        )  # fmt: skip
    images = None
    if config.generate and model.kind == "diffusion":
        images = generate_images(
            model, sae, layer, measuring[: config.n_images], intervention, density_K=selection.density_K,
            steps=config.image_steps, guidance=config.guidance, batch_size=config.batch_size, seed=config.seed,
        )  # fmt: skip
    return Outcome(selection, result, doses, texts, images)


def divide(samples: Sequence[Sample], n_selection: int, n_effect: int) -> tuple[list[Sample], list[Sample]]:
    """The first `n_selection` samples, and the next `n_effect`; in proportion where there are not enough of both.

    The two sides of a pair stay together.

    Raises:
        DataError: fewer than four samples.
    """
    if len(samples) < 4:
        raise DataError(f"selecting features and measuring their effect needs at least 4 samples, not {len(samples)}")
    if len(samples) < n_selection + n_effect:
        n_selection = min(len(samples) - 2, max(2, len(samples) * n_selection // (n_selection + n_effect)))
    if _pair(samples[n_selection - 1]) is not None and _pair(samples[n_selection - 1]) == _pair(samples[n_selection]):
        n_selection += 1
    return list(samples[:n_selection]), list(samples[n_selection : n_selection + n_effect])


def queries_for(model: MultimodalModel, samples: Sequence[Sample]) -> list[Query]:
    """One query per sample: a question (kinds in turn), the caption where there is none or the model is a dual encoder.

    A generative model that has no question is scored on the caption as its answer to `model.spec.prompt`.

    Raises:
        DataError: there is no question, and the model writes no captions.
    """
    if model.kind != "generative":
        return caption_queries(samples)
    queries = question_queries(samples, per_sample=1)
    if not queries and not model.captions:
        raise DataError(
            f"{model.spec.name} answers questions and writes no captions, and this data set has no questions "
            "(meta['questions']); take dataset=shapes or another model"
        )
    return queries or [Query(sample, model.spec.prompt, sample.caption) for sample in samples]


def _pair(sample: Sample) -> object:
    return sample.meta.get("pair", {}).get("id")
