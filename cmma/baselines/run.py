"""All methods in all comparisons, from models and samples to one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cmma.baselines.config import RANDOM, BaselinesConfig
from cmma.baselines.control import controlled
from cmma.baselines.ground import Ground, images
from cmma.baselines.hallucination import reduction
from cmma.baselines.interpretability import coverage, measure
from cmma.baselines.measures import Measure, Metric, measure_table
from cmma.baselines.methods.base import Method
from cmma.baselines.methods.registry import build_methods
from cmma.causal.intervening import divide
from cmma.data.concepts import concept_words
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.features.concepts import sample_labels
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.records import ActivationReader
from cmma.sae.standardiser import Standardiser


@dataclass(frozen=True, eq=False)
class Data:
    """Samples of each comparison: first those that are chosen on, then those that are measured.

    Attributes:
        concepts: for interpretability. biased, plain: for hallucination. scenes: for control.
    """

    concepts: Sequence[Sample]
    biased: Sequence[Sample]
    plain: Sequence[Sample]
    scenes: Sequence[Sample]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that was found.

    Attributes:
        table: the long form (`cmma.baselines.measures.measure_table`).
        units: one row per method and concept: the unit that stands for it.
        tried: comparison → every setting that was tried.
        facts: budgets, choices and sizes.
    """

    table: pd.DataFrame
    units: pd.DataFrame
    tried: dict[str, pd.DataFrame]
    facts: dict[str, Any]


def compare_baselines(
    model: MultimodalModel, dictionaries: Mapping[str, SparseAutoencoder], layer: int, reader: ActivationReader,
    data: Data, config: BaselinesConfig,
) -> Comparison:  # fmt: skip
    """Fit all methods on the same records and labels and measure them on the same other images.

    Args:
        dictionaries: `msae` and, where it is compared, `standard_sae`, of `layer`.
        reader: the cached records that they were trained on.

    Raises:
        ConfigError: a model that writes no captions. DataError: images whose objects are not known.
    """
    if not model.captions:
        raise ConfigError(f"{model.spec.name} writes no captions, which the baselines are compared in; take toy_llava")
    if not all(sample.objects and sample.mask is not None for sample in data.concepts):
        raise DataError("baselines need scenes with objects and masks; take dataset=shapes")
    choosing, measuring = divide(data.concepts, config.n_selection, config.n_measured)
    names = _concepts(choosing, config)
    selection = images(model, layer, choosing, names, config)
    standardiser = Standardiser.fit(reader).to(model.device)
    ground = Ground(model, layer, reader, standardiser, selection, config)
    methods = build_methods(ground, dictionaries)

    found: dict[Metric, dict[str, Measure | str]] = {}
    facts: dict[str, Any] = {
        "methods": [method.name for method in methods], "concepts": list(names), "budget": {
            "records": reader.n_records, "records_pca": min(reader.n_records, config.fit_records),
            "labelled_images": len(choosing), "measured_images": len(measuring),
            "hallucination_settings": config.settings_tried,
        },
    }  # fmt: skip
    units, tried = pd.DataFrame(), {}
    if "interpretability" in config.comparisons:
        units = _interpret(ground, methods, measuring, found)
    if "hallucination" in config.comparisons:
        less = reduction(model, methods, data.biased, data.plain, config)
        found |= less.measures
        tried["hallucination"] = less.tried
        facts |= {"hallucination": less.chosen, "hallucination_images": less.n_images}
    if "control" in config.comparisons:
        changed = controlled(ground, methods, data.scenes, config)
        found |= changed.measures
        tried["control"] = changed.tried
        facts |= {"control": changed.settings, "control_images": changed.n_images}
    table = measure_table(found, methods[0].name, RANDOM, config.n_bootstrap, config.seed)
    return Comparison(table, units, tried, facts)


def _concepts(samples: Sequence[Sample], config: BaselinesConfig) -> list[str]:
    """All attributes, and the most frequent whole objects, that enough of the samples carry and lack."""
    labels = sample_labels(samples, config.min_count)
    counts = dict(zip(labels.names, labels.truth_NC.sum(0), strict=True))
    phrases = (name for name in counts if len(concept_words(name)) == len(name.split()) > 1)  # no AND, OR, NOT
    objects = sorted(phrases, key=lambda name: (-counts[name], name))
    names = [name for name in counts if " " not in name] + objects[: config.n_objects]
    if not names:
        raise DataError(f"no concept is carried by {config.min_count} of the {len(samples)} selection images and "
                        "lacked by as many; raise baselines.n_selection")
    return names


def _interpret(
    ground: Ground, methods: Sequence[Method], measuring: Sequence[Sample],
    found: dict[Metric, dict[str, Measure | str]],
) -> pd.DataFrame:  # fmt: skip
    """Fill in the measures of interpretability; returns the units by concept."""
    model, config, selection = ground.model, ground.config, ground.selection
    measurement = images(model, ground.layer, measuring, selection.labels.names, config)
    where = coverage(model, selection, ground.layer), coverage(model, measurement, ground.layer)
    units = []
    for method in methods:
        measures, chosen = measure(method.read(selection), method.read(measurement), selection, measurement, where)
        for name, value in measures.items():
            found.setdefault(Metric("interpretability", name), {})[method.name] = value
        units.append(chosen.assign(method=method.name))
    return pd.concat(units, ignore_index=True)
