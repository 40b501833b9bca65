"""Captions, questions and pairs against an independent reading of the scene."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cmma.testbed.captions import Mention, RelationMention, parse_caption, parse_relations
from cmma.testbed.generate import generate_samples
from cmma.testbed.language import KINDS, all_questions, caption
from cmma.testbed.pairs import FACTORS
from cmma.testbed.scenes import COLORS, SHAPES, SIZES, TEXTURES
from cmma.testbed.world import sample_scenes

SIDES = {
    "left of": lambda a, b: a["cell"] % 3 < b["cell"] % 3,
    "right of": lambda a, b: a["cell"] % 3 > b["cell"] % 3,
    "above": lambda a, b: a["cell"] // 3 < b["cell"] // 3,
    "below": lambda a, b: a["cell"] // 3 > b["cell"] // 3,
}


def test_every_answer_equals_brute_force(brute_force):
    for sample in generate_samples("balanced", 0, 60, seed=8, questions_per_image=0):
        scene = sample_scenes(1, "balanced", 8, int(sample.key.split("-")[-1])).scene(0)
        for groups in all_questions(scene).values():
            for question in itertools.chain(*groups.values()):
                assert brute_force(sample.objects, question.question) == question.answer, question


def test_chosen_questions_are_distinct_and_of_every_kind():
    samples = list(generate_samples("balanced", 0, 200, seed=8, questions_per_image=10))
    assert all(len({q.question for q in sample.questions}) == 10 for sample in samples)
    kinds = [q.kind for sample in samples for q in sample.questions]
    assert min(kinds.count(kind) for kind in set(kinds)) > 0.06 * len(kinds)
    assert set(kinds) == set(KINDS)


def test_caption_round_trip_through_the_parser():
    scenes = sample_scenes(400, "balanced", seed=6)
    for row in range(len(scenes)):
        things = scenes.scene(row)
        text = caption(things)
        mentions = parse_caption(text)
        assert mentions[: len(things)] == [Mention(t.shape, t.color, t.size, t.texture) for t in things]
        relations = parse_relations(text)
        assert len(relations) == min(len(things) - 1, 2)
        by_name = {(t.shape, t.color): {"cell": t.cell} for t in things}
        for said in relations:
            subject, other = (by_name[m.shape, m.color] for m in (said.subject, said.other))
            assert SIDES[said.relation](subject, other)


def test_parsing_a_caption_of_the_grammar():
    text = "a large striped red circle, a small blue ring. the red circle is left of the blue ring."
    red, blue = Mention("circle", "red"), Mention("ring", "blue")
    first = [Mention("circle", "red", "large", "striped"), Mention("ring", "blue", "small")]
    assert parse_caption(text) == [*first, red, blue]
    assert parse_relations(text) == [RelationMention(red, "left of", blue)]


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("", []),
        ("a circle, a ring", [Mention("circle"), Mention("ring")]),
        ("a circle. left of it a ring", [Mention("circle"), Mention("ring")]),
        ("a circle that is not above the ring", [Mention("circle"), Mention("ring")]),
        ("a red thing beside a large, dotted ring", [Mention("ring", None, "large", "dotted")]),
    ],
)
def test_texts_that_state_no_relation(text, mentions):
    assert parse_caption(text) == mentions
    assert parse_relations(text) == []


def test_parser_reads_free_text():
    text = "two circles and a red small star. the star is to the left of the blue ring"
    mentions = [Mention("circle"), Mention("star", "red", "small"), Mention("star"), Mention("ring", "blue")]
    assert parse_caption(text) == mentions
    assert parse_relations(text) == [RelationMention(Mention("star"), "left of", Mention("ring", "blue"))]


def test_labels_are_words_attributes_and_conjunctions():
    for sample in generate_samples("balanced", 0, 50, seed=1, questions_per_image=0):
        names = {f"{o['color']} {o['shape']}" for o in sample.objects}
        singles = {o[key] for o in sample.objects for key in ("shape", "color", "size", "texture")}
        assert set(sample.labels) == names | singles
        assert singles <= {*SHAPES, *COLORS, *SIZES, *TEXTURES}


def differing_factors(clean: list[dict], corrupt: list[dict]) -> set[str]:
    """Which factors differ, found by matching the objects of two scenes in the way that changes least."""
    if len(clean) != len(corrupt):
        short, long = sorted((clean, corrupt), key=len)
        return {"presence"} if len(long) - len(short) == 1 and all(o in long for o in short) else {"many"}
    left = [o for o in clean if o not in corrupt]
    right = [o for o in corrupt if o not in clean]
    assert len(left) == len(right) == 1
    changed = {key for key in left[0] if left[0][key] != right[0][key]}
    return {"position"} if changed <= {"x", "y", "cell"} else changed


def test_pairs_differ_in_exactly_one_factor_and_in_the_answer(brute_force):
    samples = list(generate_samples("pairs", 0, 360, seed=2, questions_per_image=0))
    for clean, corrupt in zip(samples[::2], samples[1::2], strict=True):
        pair = clean.meta["pair"]
        assert (pair["role"], corrupt.meta["pair"]["role"]) == ("clean", "corrupt")
        assert {**pair, "role": ""} == {**corrupt.meta["pair"], "role": ""}
        assert differing_factors(clean.objects, corrupt.objects) == {pair["factor"]}
        assert brute_force(clean.objects, pair["question"]) == pair["answer"]
        assert brute_force(corrupt.objects, pair["question"]) == pair["other_answer"] != pair["answer"]
    assert {s.meta["pair"]["factor"] for s in samples} == set(FACTORS)


def test_pair_images_are_equal_outside_the_changed_cells():
    samples = list(generate_samples("pairs", 0, 60, seed=2, questions_per_image=0))
    for clean, corrupt in zip(samples[::2], samples[1::2], strict=True):
        differs = (np.asarray(clean.image) != np.asarray(corrupt.image)).any(axis=2)
        cells = differs.reshape(3, 16, 3, 16).any(axis=(1, 3)).sum()
        assert cells == (2 if clean.meta["pair"]["factor"] == "position" else 1)


def test_token_replacement_keeps_the_length_and_changes_the_clean_answer(brute_force):
    tokenizer = pytest.importorskip("cmma.testbed.training.toy_llava").build_tokenizer()
    for sample in itertools.islice(generate_samples("pairs", 0, 240, seed=4, questions_per_image=0), 0, None, 2):
        pair = sample.meta["pair"]
        texts = (pair["question"], pair["replacement"]["question"])
        ids, other = (np.array(tokenizer(text).input_ids) for text in texts)
        assert len(ids) == len(other)
        assert 1 <= (ids != other).sum() <= 2
        assert brute_force(sample.objects, pair["replacement"]["question"]) == pair["replacement"]["answer"]
        assert pair["replacement"]["answer"] != pair["answer"]
        assert tokenizer.unk_token_id not in ids
