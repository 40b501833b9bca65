"""Free captions of the shapes world against the truth of the scene: object, attribute and relation hallucination.

* An *object hallucination* is a mentioned shape that is nowhere in the image. Rate: of all mentions.
* An *attribute hallucination* is a mentioned shape that is there, but never with all the attributes that the mention
  states. Rate: of the mentions of present shapes that state an attribute.
* A *relation hallucination* is a relation that holds between no two objects of the image that fit the two mentions.
  Rate: of the relations stated between mentions that both fit an object.

So one wrong word is counted under one heading. Objects that the scene holds but the image does not show (the invisible
partners of the training split) are not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from cmma.data.samples import Sample
from cmma.evaluation.chair import sum_by_image
from cmma.evaluation.vocabulary import make_vocabulary
from cmma.statistics.bootstrap import Interval, bootstrap_ratio
from cmma.testbed.language import PLURALS, RELATIONS
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES

SHAPES_VOCABULARY = make_vocabulary("shapes", {shape: [PLURALS[shape]] for shape in SHAPES})
"""The table for CHAIR in the shapes world: the shape words and their plurals."""

_WORDS = {"color": COLORS, "size": SIZES, "texture": TEXTURES}
_ATTRIBUTE_OF = {word: attribute for attribute, words in _WORDS.items() for word in words}
_PHRASE = re.compile(
    r"\b(?P<attributes>(?:(?:{attributes})[\s,]+)*)(?P<shape>{shapes})\b".format(
        attributes="|".join(_ATTRIBUTE_OF), shapes="|".join(SHAPES_VOCABULARY.node_of)
    )
)
_BETWEEN = re.compile(rf"\s+(?:(?:is|are)\s+)?(?:to\s+the\s+)?({'|'.join(RELATIONS)})\s+(?:(?:a|an|the)\s+)?")


@dataclass(frozen=True)
class ParsedCaption:
    """What a caption says.

    Attributes:
        mentions: each as attribute → word, always with "shape".
        relations: (mention, relation, mention), the mentions by index.
    """

    mentions: tuple[dict[str, str], ...]
    relations: tuple[tuple[int, str, int], ...]


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
    """One caption: how many claims of each kind it makes, and how many are wrong."""

    mentions: int
    absent_objects: int
    attributed: int
    wrong_attributes: int
    relations: int
    wrong_relations: int
    visible: int
    described: int


def parse_caption(caption: str) -> ParsedCaption:
    """Read mentions and relations out of a caption; words outside the grammar are passed over."""
    text = caption.lower()
    found = list(_PHRASE.finditer(text))
    mentions = []
    for match in found:
        stated = {_ATTRIBUTE_OF[word]: word for word in re.findall(r"\w+", match["attributes"])}
        mentions.append(stated | {"shape": SHAPES_VOCABULARY.node_of[match["shape"]]})
    relations = []
    for index, (first, second) in enumerate(pairwise(found)):
        between = _BETWEEN.fullmatch(text, first.end(), second.start())
        if between:
            relations.append((index, between[1], index + 1))
    return ParsedCaption(tuple(mentions), tuple(relations))


def visible_objects(sample: Sample) -> dict[int, dict[str, Any]]:
    """The objects that the image shows, by their index in the scene."""
    return {index: thing for index, thing in enumerate(sample.objects) if thing.get("visible", True)}


def visible_shapes(sample: Sample) -> list[str]:
    """Shape words of what the image shows: the ground truth for CHAIR."""
    return sorted({thing["shape"] for thing in visible_objects(sample).values()})


def score_scene_caption(caption: str, sample: Sample) -> SceneCounts:
    """Check every claim of one caption against its scene."""
    parsed = parse_caption(caption)
    objects = visible_objects(sample)
    shapes = {thing["shape"] for thing in objects.values()}
    fitting = [[i for i, thing in objects.items() if _fits(mention, thing)] for mention in parsed.mentions]
    attributed = [
        fits for mention, fits in zip(parsed.mentions, fitting, strict=True)
        if mention["shape"] in shapes and len(mention) > 1
    ]  # fmt: skip
    holds = {(i, name, j) for i, name, j in sample.meta.get("relations", [])}
    stated = [
        any((i, name, j) in holds for i, j in product(fitting[a], fitting[b]))
        for a, name, b in parsed.relations
        if fitting[a] and fitting[b]
    ]
    return SceneCounts(
        mentions=len(parsed.mentions),
        absent_objects=sum(mention["shape"] not in shapes for mention in parsed.mentions),
        attributed=len(attributed),
        wrong_attributes=sum(not fits for fits in attributed),
        relations=len(stated),
        wrong_relations=stated.count(False),
        visible=len(objects),
        described=len({index for fits in fitting for index in fits}),
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


def _fits(mention: Mapping[str, str], thing: Mapping[str, Any]) -> bool:
    return all(thing[attribute] == word for attribute, word in mention.items())
