"""Hallucination mitigation from beginning to end: find features, choose strengths, test once, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cmma.causal.intervening import divide
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.evaluation.presence import Occurrence, object_name, occurrence
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.mitigation.calibration import Calibration, Choice
from cmma.mitigation.cause import trigger_table
from cmma.mitigation.comparison import compare, pooled
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.examination import Examination, Sheet, answer, examination, examine
from cmma.mitigation.prone import ProneFeatures, prone_features
from cmma.mitigation.published import fit_projection, head_ablation, project_away, prompting, save, ssl
from cmma.mitigation.spoken import SpokenMention, spoken_mentions
from cmma.mitigation.steering import UNSTEERED, Steering, feature_controls
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.statistics.correction import holm

OURS = "features"
REVERSED = "reversed"


@dataclass(frozen=True, eq=False)
class Mitigation:
    """Everything that was found.

    Attributes:
        prone: both rankings of features.
        choices: what calibration chose, in the order of the test's rows.
        headline: the choice among the ways of selecting features that calibration found best; `OURS` in the tables.
        tried: every strength that calibration tried.
        test: one row per condition, split and metric (`cmma.mitigation.comparison.compare`), with `p_holm` over the
            conditions. Conditions: `clean`; `features` (the headline) and each `features by HOW`; published ways; what
            is `reversed`; the controls of the headline, `random features` and `random direction`.
        trigger: where the headline's features lie (`cmma.mitigation.cause.trigger_table`); empty without a known cause.
        texts: captions of the test: `condition, split, key, caption`.
        not_measured: condition → why.
        facts: further numbers for the summary.
    """

    prone: ProneFeatures
    choices: list[Choice]
    headline: Choice
    tried: pd.DataFrame
    test: pd.DataFrame
    trigger: pd.DataFrame
    texts: list[dict[str, Any]]
    not_measured: dict[str, str]
    facts: dict[str, Any]


def mitigate(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, biased: Sequence[Sample], plain: Sequence[Sample],
    known: Sequence[Sample], config: MitigationConfig,
) -> Mitigation:  # fmt: skip
    """Select and choose on the first images of either split, test once on the next.

    Args:
        biased: where the model hallucinates. plain: where nothing may get worse either.
        known: samples whose objects say what is frequent and what occurs together, for the presence questions.

    Raises:
        ConfigError: a model that writes no captions.
        DataError: images whose objects are not known; NothingHallucinated: on those for calibration.
    """
    if not model.captions:
        raise ConfigError(f"{model.spec.name} writes no captions, so there is no hallucination in them to mitigate")
    if not all(sample.objects for sample in (*biased, *plain)):
        raise DataError("hallucination needs images whose objects are known (meta['objects']); take dataset=shapes")
    choosing, testing = zip(*(
        divide(samples, config.n_calibration, config.n_held_out) for samples in (biased, plain)), strict=True)
    counted = occurrence([[object_name(thing) for thing in sample.objects] for sample in known])
    names, n_questions = (config.split, config.plain_split), config.n_questions
    calibrating = [examination(*each, n_questions, seed=config.seed) for each in zip(names, choosing, strict=True)]
    clean = [examine(model, exam, UNSTEERED, 0.0, config) for exam in calibrating]
    mentions = [
        mention for exam, sheet in zip(calibrating, clean, strict=True)
        for mention in spoken_mentions(model, exam.samples, sheet.captions, SHAPES_VOCABULARY)
    ]  # fmt: skip
    doubtful = {mention.node for mention in mentions if mention.hallucinated}
    # Presence questions stay where the model hallucinates: what they ask for is drawn from what occurs together.
    held_out = [
        examination(name, samples, n_questions, asked, config.seed, doubtful)
        for name, samples, asked in zip(names, testing, (counted, None), strict=True)
    ]  # fmt: skip
    prone = prone_features(model, sae, layer, mentions, SHAPES_VOCABULARY, config)
    calibration = Calibration(model, calibrating, clean, config)
    ours = [calibration.choose_features(sae, layer, prone.pool(how), how) for how in config.selections]
    headline = min(ours, key=lambda choice: choice.rate)
    published, not_measured, facts = _published(model, sae, layer, mentions, counted, calibrating[0], config)
    rivals = [calibration.choose(steering) for steering in published]
    not_measured |= {
        choice.steering.name: "no strength that was tried keeps recall and accuracy within their limits"
        for choice in (*ours, *rivals) if choice.strength == 0
    }  # fmt: skip

    controls = {}
    if headline.strength:
        controls = feature_controls(model, sae, layer, headline.steering.features, prone.density_K, config)
    conditions = _conditions(headline, [*ours, *rivals], controls)
    test, texts = _test(model, held_out, conditions, config)
    trigger = trigger_table(
        model, sae, layer, held_out[0].samples, headline.steering.features, prone.density_K,
        batch_size=config.batch_size, n_resamples=config.n_bootstrap, seed=config.seed,
    )  # fmt: skip
    facts |= {
        "images_calibration": [len(exam.samples) for exam in calibrating],
        "images_held_out": [len(exam.samples) for exam in held_out],
        "hallucinated_mentions": sum(mention.hallucinated for mention in mentions),
        "auroc_cross_validated": prone.auroc_cross_validated,
    }
    tried = pd.DataFrame([row for choice in (*ours, *rivals) for row in choice.tried])
    return Mitigation(prone, [*ours, *rivals], headline, tried, test, trigger, texts, not_measured, facts)


def _published(
    model: MultimodalModel, sae: SparseAutoencoder, layer: int, mentions: Sequence[SpokenMention], counted: Occurrence,
    exam: Examination, config: MitigationConfig,
) -> tuple[list[Steering], dict[str, str], dict[str, Any]]:
    """The published ways that are asked for, those that cannot be measured with the reason, and numbers beside."""
    made: list[Steering] = []
    reasons: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for name in config.published:
        if name == "save":
            presence = examination(exam.name, exam.samples, config.n_questions, counted, config.seed).presence
            asked = [each for some in presence.values() for each in some]
            made.append(save(model, sae, layer, [sample for sample, _ in asked], answer(model, asked, config), config))
        elif name == "ssl":
            made.append(ssl(model, sae, layer, mentions, config))
        elif name == "projection":
            projection = fit_projection(model, layer, mentions, config)
            facts["auroc_internal_confidence"] = projection.auroc
            made.append(project_away(model, layer, projection, SHAPES_VOCABULARY, config))
        elif name == "heads":
            made.append(head_ablation(model, mentions, SHAPES_VOCABULARY, config))
        else:
            prompt = prompting(model, config)
            if isinstance(prompt, str):
                reasons["prompt only"] = prompt
            else:
                made.append(prompt)
    return made, reasons, facts


Condition = list[tuple[Steering, float]]
"""Steerings, each with its strength, whose counts are pooled: one, or the draws of a control."""


def _conditions(
    headline: Choice, choices: Sequence[Choice], controls: dict[str, list[Steering]]
) -> dict[str, Condition]:
    """What is tested, by name; what calibration left off is not."""
    found: dict[str, Condition] = {"clean": [(UNSTEERED, 0.0)]}
    if headline.strength:
        found[OURS] = [(headline.steering, headline.strength)]
        found[f"{OURS}, {REVERSED}"] = [(headline.steering, -headline.strength)]
    found |= {name: [(draw, headline.strength) for draw in draws] for name, draws in controls.items()}
    for choice in choices:
        if choice.strength:
            name = choice.steering.name
            found[name] = [(choice.steering, choice.strength)]
            if choice.steering.signed and not name.startswith(OURS):
                found[f"{name}, {REVERSED}"] = [(choice.steering, -choice.strength)]
    return found


def _test(
    model: MultimodalModel, exams: Sequence[Examination], conditions: dict[str, Condition], config: MitigationConfig
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Every condition on the held-out images: the table of `Mitigation.test`, and the captions."""
    rows: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for exam in exams:
        seen: dict[tuple[object, float], Sheet] = {}
        clean = examine(model, exam, UNSTEERED, 0.0, config)
        for name, draws in conditions.items():
            sheets = []
            for steering, strength in draws:
                same = steering.identity, strength
                if same not in seen:
                    seen[same] = clean if steering is UNSTEERED else examine(model, exam, steering, strength, config)
                sheets.append(seen[same])
            before, after = pooled([clean.columns] * len(draws)), pooled([sheet.columns for sheet in sheets])
            rows += compare(name, exam.name, before, after, config.n_bootstrap, config.seed)
            texts += [
                {"condition": name, "split": exam.name, "key": sample.key, "caption": caption}
                for sample, caption in zip(exam.samples, sheets[0].captions, strict=True)
            ]  # fmt: skip
    table = pd.DataFrame(rows)
    steered = table["condition"] != "clean"
    table["p_holm"] = np.nan
    table.loc[steered, "p_holm"] = table[steered].groupby(["split", "metric"])["p"].transform(holm)
    return table, texts
