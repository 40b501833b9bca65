"""Free captions of the shapes world against the truth of the scene: object, attribute and relation hallucination.

* An *object hallucination* is a mentioned shape that is nowhere in the image. Rate: of all mentions.
* An *attribute hallucination* is a mentioned shape that is there, but never with all the attributes that the mention
  states. Rate: of the mentions of present shapes that state an attribute.
* A *relation hallucination* is a relation that holds between no two objects of the image that fit the two mentions.
  Rate: of the relations stated between mentions that both fit an object.

So one wrong word is counted under one heading. Objects that the scene holds but the image does not show (the invisible
partners of the training split) are not there. What is said *of* an object that is not there falls under neither of the
last two; `SceneCounts` counts it with the rest in `false_phrases` and `false_statements`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from cmma.data.samples import Sample
from cmma.evaluation.chair import sum_by_image
from cmma.evaluation.vocabulary import Vocabulary
from cmma.statistics.bootstrap import Interval, bootstrap_ratio
from cmma.testbed.captions import OBJECT_WORDS, Mention, parse_caption, parse_relations

SHAPES_VOCABULARY = Vocabulary("shapes", OBJECT_WORDS)
"""The table for CHAIR in the shapes world: the shape words and their plurals."""


@dataclass(frozen=True)
class SceneHallucination:
    """Rates over a corpus of captions; every interval resamples images.

    Attributes:
        objects, attributes, relations: hallucination rates as the module defines them; NaN where nothing was stated.
        described: share of the visible objects that fit some mention.
        n_mentions, n_attributed, n_relations: the denominators.
    """

    objects: Interval
    attributes: Interval
    relations: Interval
    described: Interval
    n_mentions: int
    n_attributed: int
    n_relations: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: value.as_dict() if isinstance(value, Interval) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class SceneCounts:
    """One caption: how many claims of each kind it makes, and how many are wrong.

    Beside the module's three: `phrases` state an attribute of whatever object, and `false_phrases` fit none that is
    visible; `statements` are all relations stated, and `false_statements` hold between no two visible objects.
    """

    mentions: int
    absent_objects: int
    attributed: int
    wrong_attributes: int
    relations: int
    wrong_relations: int
    visible: int
    described: int
    phrases: int
    false_phrases: int
    statements: int
    false_statements: int


def visible_objects(sample: Sample) -> dict[int, dict[str, Any]]:
    """The objects that the image shows, by their index in the scene."""
    return {index: thing for index, thing in enumerate(sample.objects) if thing.get("visible", True)}


def visible_shapes(sample: Sample) -> list[str]:
    """Shape words of what the image shows: the ground truth for CHAIR."""
    return sorted({thing["shape"] for thing in visible_objects(sample).values()})


def score_scene_caption(caption: str, sample: Sample) -> SceneCounts:
    """Check every claim of one caption against its scene."""
    mentions, objects = parse_caption(caption), visible_objects(sample)
    shapes = {thing["shape"] for thing in objects.values()}
    fitting = [_fitting(mention, objects) for mention in mentions]
    attributed = [
        fits for mention, fits in zip(mentions, fitting, strict=True)
        if mention.shape in shapes and len(mention.stated) > 1
    ]  # fmt: skip
    holds = {(i, name, j) for i, name, j in sample.meta.get("relations", [])}
    sides = [(_fitting(r.subject, objects), r.relation, _fitting(r.other, objects)) for r in parse_relations(caption)]
    true = [any((i, name, j) in holds for i, j in product(subjects, others)) for subjects, name, others in sides]
    stated = [found for found, (subjects, _, others) in zip(true, sides, strict=True) if subjects and others]
    phrases = [fits for mention, fits in zip(mentions, fitting, strict=True) if len(mention.stated) > 1]
    return SceneCounts(
        mentions=len(mentions),
        absent_objects=sum(mention.shape not in shapes for mention in mentions),
        attributed=len(attributed),
        wrong_attributes=sum(not fits for fits in attributed),
        relations=len(stated),
        wrong_relations=stated.count(False),
        visible=len(objects),
        described=len({index for fits in fitting for index in fits}),
        phrases=len(phrases),
        false_phrases=sum(not fits for fits in phrases),
        statements=len(true),
        false_statements=true.count(False),
    )


def scene_hallucination(
    captions: Sequence[str], samples: Sequence[Sample], n_resamples: int = 10_000, seed: int = 0
) -> SceneHallucination:
    """Object, attribute and relation hallucination rates of captions; `samples` gives each caption its scene."""
    counts = [score_scene_caption(caption, sample) for caption, sample in zip(captions, samples, strict=True)]
    counts_NF = np.array([list(vars(count).values()) for count in counts]).reshape(len(counts), -1)
    sums_IF = sum_by_image(counts_NF, [sample.key for sample in samples])
    columns = dict(zip(SceneCounts.__dataclass_fields__, sums_IF.T, strict=True))

    def rate(wrong: str, stated: str) -> Interval:
        return bootstrap_ratio(columns[wrong], columns[stated], n_resamples=n_resamples, seed=seed)

    return SceneHallucination(
        objects=rate("absent_objects", "mentions"),
        attributes=rate("wrong_attributes", "attributed"),
        relations=rate("wrong_relations", "relations"),
        described=rate("described", "visible"),
        n_mentions=int(columns["mentions"].sum()),
        n_attributed=int(columns["attributed"].sum()),
        n_relations=int(columns["relations"].sum()),
    )


def _fitting(mention: Mention, objects: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """The objects of which everything that the mention states is true."""
    stated = mention.stated.items()
    return [index for index, thing in objects.items() if all(thing[attribute] == word for attribute, word in stated)]
