"""`metric=chair`: captions against the objects of their images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from textblob.en.inflect import pluralize

from cmma.console import track
from cmma.evaluation.caption_words import NEVER_FOUND, CaptionWords, lemmas, singulars
from cmma.evaluation.chair import Chair, chair
from cmma.evaluation.scoring.annotations import coco_captions, coco_categories
from cmma.evaluation.scoring.job import Problems, ScoreJob
from cmma.evaluation.scoring.rows import Text, read_rows, read_texts, write_rows
from cmma.evaluation.vocabulary import (
    COCO_OBJECTS,
    Vocabulary,
    is_public_list,
    make_vocabulary,
    read_public_list,
    read_table,
)

_FINISHED = re.compile(r".*[.!?][\"'”’)\]]*", re.DOTALL)


def run(job: ScoreJob) -> dict[str, Any]:
    """CHAIR_i, CHAIR_s, recall and mean length as shares, with their intervals and the counts behind them.

    Raises:
        DataError: files that cannot be read, or not one caption of a known image.
    """
    config, problems = job.config, job.problems
    words = object_words(config.normalizer, Path(config.synonyms).expanduser() if config.synonyms else None)
    texts = read_texts(job.predictions, ("caption", "text"), problems)
    truth = read_objects(job.references, {text.image for text in texts}, words, problems)
    scored = [text for text in texts if text.image in truth]
    for image in dict.fromkeys(text.image for text in texts if text.image not in truth):
        problems.add("unknown_image", image)
    if not scored:
        raise job.nothing("not one caption of an image that the references know")
    if config.unfinished == "drop":
        scored = [Text(text.image, finished_part(text.text)) for text in scored]
    images = [text.image for text in scored]
    result = chair(
        [text.text for text in track(scored, "Scoring captions")], [truth[image] for image in images], words, images,
        config.n_bootstrap, job.seed,
    )  # fmt: skip
    if config.per_sample:
        write_rows(config.per_sample, _samples(scored, result))
    intervals = {name: getattr(result, name) for name in ("chair_i", "chair_s", "recall", "mean_words")}
    return {
        **{name: interval.value for name, interval in intervals.items()},
        **{name: getattr(result, name) for name in ("n_captions", "n_mentions", "n_hallucinated", "n_without_mention")},
        "n_images": len(set(images)),
        "intervals": {name: interval.as_dict() for name, interval in intervals.items()},
        "normalizer": config.normalizer,
        "word_list": result.vocabulary,
        "unfinished": config.unfinished,
        "max_new_tokens": config.max_new_tokens,
    }


def object_words(normalizer: str, path: Path | None) -> CaptionWords | Vocabulary:
    """The words that name objects, found in one of three ways (`ScoreConfig.normalizer`).

    Args:
        path: a word list, in the public file's format or in ours; None = COCO's categories.
    """
    public = path is not None and is_public_list(path)
    table = read_public_list(path) if path and public else read_table(path or COCO_OBJECTS)
    name = path.stem if path else "coco"
    if normalizer == "table":
        return with_plurals(make_vocabulary(name, table))
    node_of = {word if public else word.lower(): node for node, words in table.items() for word in (node, *words)}
    if path is None:
        node_of = {word: node for word, node in node_of.items() if word not in NEVER_FOUND}
    return CaptionWords(name, node_of, {"pattern": singulars, "wordnet": lemmas}[normalizer])


def with_plurals(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary and the regular plural of each of its phrases, unless that is a phrase already."""
    plurals = {pluralize(phrase): node for phrase, node in vocabulary.node_of.items()}
    return Vocabulary(vocabulary.name, plurals | dict(vocabulary.node_of))


def read_objects(
    path: Path, wanted: set[str], words: CaptionWords | Vocabulary, problems: Problems
) -> dict[str, set[str]]:
    """Image → objects in it, of the wanted images; names that the word list does not know are left out and counted.

    Of a COCO annotation folder: the categories, and what the reference captions mention.
    """
    if path.is_dir():
        objects: dict[str, set[str]] = coco_categories(path, wanted)
        for image, captions in track(coco_captions(path, wanted).items(), "Reading reference captions"):
            objects.setdefault(image, set()).update(
                mention.node for caption in captions for mention in words.mentions(caption)
            )
    else:
        objects = _listed_objects(path, wanted, problems)
    return {image: set(_known(names, words, problems)) for image, names in objects.items()}


def _listed_objects(path: Path, wanted: set[str], problems: Problems) -> dict[str, set[str]]:
    objects: dict[str, set[str]] = {}
    for place, image, content in read_rows(path, problems):
        names = content.get("objects")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.add("row_without_objects", place)
            continue
        if image in objects:
            problems.add("reference_again", f"{place}, image {image}")
        if image in wanted:
            objects.setdefault(image, set()).update(names)
    return objects


def _known(names: Iterable[str], words: CaptionWords | Vocabulary, problems: Problems) -> Iterable[str]:
    for name in names:
        if name.lower() in words.node_of:
            yield name
        else:
            problems.add("unknown_object", name)


def finished_part(caption: str) -> str:
    """The caption up to its last full stop; the whole of one that has none."""
    finished = _FINISHED.match(caption)
    return finished[0] if finished else caption


def _samples(texts: Iterable[Text], result: Chair) -> Iterable[dict[str, Any]]:
    for text, score in zip(texts, result.captions, strict=True):
        yield {
            "image": text.image,
            "caption": text.text,
            "mentions": [[mention.word, mention.node] for mention in score.mentions],
            "hallucinated": [[mention.word, mention.node] for mention in score.hallucinated],
            "recalled": sorted(score.recalled),
            "n_objects": score.n_objects,
        }
