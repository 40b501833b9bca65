"""CHAIR by hand, after Rohrbach et al. 2018."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmma.errors import DataError
from cmma.evaluation.chair import chair, score_caption
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.evaluation.vocabulary import make_vocabulary, read_vocabulary

KITCHEN = make_vocabulary(
    "kitchen",
    {
        "dining table": ["table", "tables"],
        "dog": ["dogs", "puppy"],
        "hot dog": ["hot dogs"],
        "person": ["man", "people"],
    },
)


def test_worked_example_with_repeated_mentions():
    captions = [
        "A man at a table, the dog under the table.",  # person, table, DOG, table: 4 mentions, 1 hallucinated
        "dogs and a puppy",  # dog, dog: both true, one object recalled
        "nothing to see here",  # no mention: still a caption
        "a puppy; the puppy sleeps",  # DOG, DOG: two hallucinated mentions, one faulty caption
    ]
    objects = [["person", "dining table"], ["dog", "hot dog"], ["person"], ["person"]]
    result = chair(captions, objects, KITCHEN)
    assert (result.n_mentions, result.n_hallucinated) == (4 + 2 + 0 + 2, 1 + 0 + 0 + 2)
    assert result.chair_i.value == pytest.approx(3 / 8)
    assert result.chair_s.value == pytest.approx(2 / 4)
    assert result.recall.value == pytest.approx((2 + 1 + 0 + 0) / (2 + 2 + 1 + 1))
    assert result.mean_words.value == pytest.approx((10 + 4 + 4 + 5) / 4)
    assert result.n_without_mention == 1
    assert [mention.word for mention in result.captions[3].hallucinated] == ["puppy", "puppy"]


def test_phrases_win_over_the_words_inside_them():
    mentions = KITCHEN.mentions("Hot dogs on the dining-table? On the dining table, a hot dog")
    assert [mention.node for mention in mentions] == ["hot dog", "dining table", "hot dog"]


def test_shape_words_and_plurals():
    mentions = SHAPES_VOCABULARY.mentions("two circles, CROSSES and a ring; no ringlet, no circled star")
    assert [mention.node for mention in mentions] == ["circle", "cross", "ring", "star"]


def test_intervals_resample_images_not_captions():
    captions = ["a dog", "a dog", "a table", "a table"] * 10
    truth = [["dining table"]] * 40
    by_caption = chair(captions, truth, KITCHEN)
    by_image = chair(captions, truth, KITCHEN, images=[i // 2 for i in range(40)])
    assert by_caption.chair_i.value == by_image.chair_i.value == 0.5
    assert (by_caption.chair_i.n, by_image.chair_i.n) == (40, 20)
    widening = (by_image.chair_i.high - by_image.chair_i.low) / (by_caption.chair_i.high - by_caption.chair_i.low)
    assert widening == pytest.approx(math.sqrt(2), rel=0.15)  # captions of one image are alike: half as many units


def test_without_mentions_chair_i_is_undefined_and_chair_s_is_zero():
    result = chair(["blue sky", "日本語の説明", ""], [["dog"]] * 3, KITCHEN)
    assert math.isnan(result.chair_i.value)
    assert result.chair_s.value == 0
    assert result.as_dict()["chair_i"]["value"] is None
    assert result.captions[2].n_words == 0


def test_unknown_truth_and_no_captions_are_refused():
    with pytest.raises(DataError, match="'zebra' of the ground truth is not in the vocabulary kitchen"):
        chair(["a dog"], [["zebra"]], KITCHEN)
    with pytest.raises(DataError, match="no captions"):
        chair([], [], KITCHEN)


@given(st.lists(st.sampled_from(["dog", "man", "table", "and", "hot", "dogs,", "."]), max_size=30).map(" ".join))
def test_mentions_split_into_true_and_hallucinated(caption: str):
    score = score_caption(caption, {"dog", "person"}, KITCHEN)
    assert {mention.node for mention in score.mentions} == score.recalled | {m.node for m in score.hallucinated}
    everything = score_caption(caption, set(KITCHEN.nodes), KITCHEN)
    assert not everything.hallucinated
    assert everything.mentions == score.mentions


def test_vocabulary_files(tmp_path):
    table = tmp_path / "zoo.txt"
    table.write_text("# a comment\nbig cat: lion, Lions, tiger\n\nbird: wren  # small\n")
    zoo = read_vocabulary(table)
    assert (zoo.name, zoo.nodes) == ("zoo", ["big cat", "bird"])
    assert [m.node for m in zoo.mentions("LIONS watch a wren")] == ["big cat", "bird"]
    for content, message in [
        ("cat lion", "line 1: expected 'node word"),
        ("cat: lion\ndog: lion", "'lion' stands for both 'cat' and 'dog'"),
        ("# nothing", "without a single object"),
    ]:
        table.write_text(content)
        with pytest.raises(DataError, match=message):
            read_vocabulary(table)


def test_located_mentions_are_where_their_words_are():
    caption = "Two hot dogs; on the dining table, a hot dog"
    found = KITCHEN.located(caption)
    assert [caption[start:end] for start, end in found] == ["hot dogs", "dining table", "hot dog"]
    assert list(found.values()) == KITCHEN.mentions(caption)
