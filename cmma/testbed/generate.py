"""From scenes to samples: image, caption, questions and truth of the shapes world."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from cmma.checks import one_of
from cmma.data.concepts import concept_words, named_objects
from cmma.data.samples import Sample
from cmma.testbed import language
from cmma.testbed.counterfactuals import counterfactuals
from cmma.testbed.pair_questions import pair_truth
from cmma.testbed.render import render
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES, Scene
from cmma.testbed.world import sample_scenes

_CHUNK = 512  # scenes drawn at once: bounds memory, does not influence content


def generate_samples(
    split: str, start: int, stop: int, seed: int = 0, questions_per_image: int = 8, concepts: Sequence[str] = ()
) -> Iterator[Sample]:
    """Samples `start` … `stop` of a split of the shapes world; sample i depends on (seed, split, i) only.

    In the `pairs` split samples 2p and 2p + 1 are the clean and the corrupted side of pair p.

    Args:
        concepts: complex concepts ("red AND NOT ring") that become labels where one of the objects satisfies them.

    Raises:
        ConfigError: no such split, or a concept with a word that is no attribute.
    """
    for word in (word for concept in concepts for word in concept_words(concept)):
        one_of("dataset.concepts", word, (*SHAPES, *COLORS, *SIZES, *TEXTURES))
    for first in range(start, stop, _CHUNK):
        yield from _chunk(split, first, min(first + _CHUNK, stop), seed, questions_per_image, concepts)


def _chunk(
    split: str, start: int, stop: int, seed: int, n_questions: int, concepts: Sequence[str]
) -> Iterator[Sample]:
    scenes = sample_scenes(stop - start, split, seed, start)
    images, masks = render(scenes)
    for row, index in enumerate(range(start, stop)):
        scene = scenes.scene(row)
        meta = scene_meta(scene, split) | {
            "questions": [asdict(q) for q in language.questions(scene, question_rng(seed, split, index), n_questions)]
        }
        meta["labels"] = sorted({*meta["labels"], *(c for c in concepts if named_objects(c, meta["objects"]))})
        if split != "train":
            meta["counterfactuals"] = counterfactuals(scene, question_rng(seed, f"{split} counterfactuals", index))
        if split == "pairs":
            meta["pair"] = pair_truth(seed, index)
        key = f"{split}-{seed}-{index:08d}"
        yield Sample(key, Image.fromarray(images[row]), language.caption(scene), meta, masks[row])


def question_rng(seed: int, split: str, index: int) -> random.Random:
    """The generator that chooses the questions of one sample."""
    return random.Random(f"{seed}/{split}/{index}")


def scene_meta(scene: Scene, split: str) -> dict[str, Any]:
    """The truth of a scene as it is stored beside the image.

    Labels are the object words, all attribute words and the "colour shape" conjunctions, sorted.
    """
    labels = {word for thing in scene for word in (thing.shape, thing.color, thing.size, thing.texture, thing.name)}
    return {
        "split": split,
        "objects": [
            {
                "shape": thing.shape, "color": thing.color, "size": thing.size, "texture": thing.texture,
                "x": round(thing.x, 3), "y": round(thing.y, 3), "cell": thing.cell, "visible": thing.visible,
            }
            for thing in scene
        ],
        "relations": [list(relation) for relation in language.relations(scene)],
        "labels": sorted(labels),
    }  # fmt: skip
