"""What a model says about a set of images while it is steered, counted image by image."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cmma.data.samples import Question, Sample
from cmma.evaluation.captioning import generate, some_questions
from cmma.evaluation.chair import score_caption
from cmma.evaluation.presence import WAYS, Occurrence, object_name, presence_questions
from cmma.evaluation.questions import Answered, parse_yes_no
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY, score_scene_caption, visible_objects, visible_shapes
from cmma.mitigation.config import MitigationConfig
from cmma.mitigation.steering import Steering
from cmma.models.base import MultimodalModel

Asked = list[tuple[Sample, Question]]
_ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Examination:
    """A set of images, and what is asked about them beside a caption.

    Attributes:
        name: of the split.
        samples: the images.
        questions: that come with the images; answers to them are the question accuracy.
        presence: yes/no questions about objects, by the way in which absent ones are drawn (`WAYS`); may be empty.
        doubtful: kinds of object that the model hallucinates elsewhere; here their recall is counted apart.
    """

    name: str
    samples: Sequence[Sample]
    questions: Asked
    presence: dict[str, Asked]
    doubtful: frozenset[str] = frozenset()


def examination(
    name: str, samples: Sequence[Sample], n_questions: int, known: Occurrence | None = None, seed: int = 0,
    doubtful: Collection[str] = (),
) -> Examination:  # fmt: skip
    """Take the first `n_questions` of the images' own; with `known` also as many presence questions of each way."""
    presence = {} if known is None else {way: _presence(name, samples, known, way, seed)[:n_questions] for way in WAYS}
    return Examination(name, samples, some_questions(samples, n_questions), presence, frozenset(doubtful))


def _presence(name: str, samples: Sequence[Sample], known: Occurrence, way: str, seed: int) -> Asked:
    rng = random.Random(f"{seed}/{name}/{way}")
    return [
        (sample, question) for sample in samples for question in presence_questions(_shown(sample), known, way, rng)
    ]  # fmt: skip


def _shown(sample: Sample) -> list[str]:
    return [object_name(thing) for thing in visible_objects(sample).values()]


@dataclass(frozen=True, eq=False)
class Sheet:
    """The result of an examination under one steering.

    Attributes:
        captions: one per image.
        columns: counts by name, each [images]: those of `SceneCounts`; `hallucinating` captions of `captions`;
            `recalled` of `objects` (distinct, as CHAIR counts), `doubtful_recalled` of `doubtful_objects`; `words`;
            `false_claims` of `claims`; `right` of `asked` questions, and for each way of `WAYS` `WAY_right` of
            `WAY_asked` and `WAY_yes`.
    """

    captions: tuple[str, ...]
    columns: dict[str, NDArray[np.float64]]


def examine(
    model: MultimodalModel, exam: Examination, steering: Steering, strength: float, config: MitigationConfig
) -> Sheet:
    """Caption every image and answer every question under the steering."""
    under = partial(steering.under, strength)
    instruction = [steering.prompt] * len(exam.samples) if steering.prompt else None
    captions = generate(
        model, exam.samples, instruction, config.batch_size, config.max_new_tokens, "Captioning", under)
    columns = caption_counts(exam.samples, captions, exam.doubtful)
    answers = answer(model, exam.questions, config, under)
    columns |= _by_image(exam.samples, answers, {"asked": lambda each: True, "right": lambda each: each.correct})
    for way, asked in exam.presence.items():
        columns |= _by_image(exam.samples, answer(model, asked, config, under), {
            f"{way}_asked": lambda each: True, f"{way}_right": lambda each: each.correct,
            f"{way}_yes": lambda each: parse_yes_no(each.prediction) == "yes",
        })  # fmt: skip
    return Sheet(tuple(captions), columns)


def caption_counts(
    samples: Sequence[Sample], captions: Sequence[str], doubtful: Collection[str] = ()
) -> dict[str, NDArray[np.float64]]:
    """The counts of `Sheet.columns` that captions give."""
    rows = []
    for sample, caption in zip(samples, captions, strict=True):
        scene = score_scene_caption(caption, sample)
        truth = SHAPES_VOCABULARY.truth(visible_shapes(sample))
        shapes = score_caption(caption, truth, SHAPES_VOCABULARY)
        rows.append(asdict(scene) | {
            "captions": 1, "hallucinating": scene.absent_objects > 0, "words": shapes.n_words,
            "recalled": len(shapes.recalled), "objects": shapes.n_objects,
            "doubtful_recalled": len(shapes.recalled.intersection(doubtful)),
            "doubtful_objects": len(truth.intersection(doubtful)),
            "claims": scene.mentions + scene.attributed + scene.relations,
            "false_claims": scene.absent_objects + scene.wrong_attributes + scene.wrong_relations,
        })  # fmt: skip
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def answer(
    model: MultimodalModel, asked: Asked, config: MitigationConfig,
    under: Callable[[Sequence[Sample]], AbstractContextManager[object]] | None = None,
) -> list[Answered]:  # fmt: skip
    """The model's answers to questions, in their order, while `under` is in force for each batch."""
    samples, texts = [sample for sample, _ in asked], [question.question for _, question in asked]
    said = generate(model, samples, texts, config.batch_size, _ANSWER_TOKENS, "Answering questions", under)
    return [Answered(sample.key, question, text) for (sample, question), text in zip(asked, said, strict=True)]


def _by_image(
    samples: Sequence[Sample], answers: Sequence[Answered], counted: dict[str, Callable[[Answered], bool]]
) -> dict[str, NDArray[np.float64]]:
    row_of = {sample.key: row for row, sample in enumerate(samples)}
    rows = np.array([row_of[str(each.image)] for each in answers], dtype=np.int64)
    return {
        name: np.bincount(rows, [counts(each) for each in answers], minlength=len(samples)).astype(np.float64)
        for name, counts in counted.items()
    }
