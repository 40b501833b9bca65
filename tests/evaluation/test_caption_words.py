"""Object words as the original CHAIR finds them: every quirk by hand, and the published values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer

from cmma.errors import DataError
from cmma.evaluation import caption_words
from cmma.evaluation.chair import chair
from cmma.evaluation.scoring.chair import finished_part, object_words
from cmma.evaluation.vocabulary import COCO_OBJECTS, read_public_list, read_table

PUBLIC = Path(__file__).parents[3] / "shared" / "data" / "chair"
public_data = pytest.mark.skipif(not PUBLIC.is_dir(), reason="the development data is not here")
STRICT = object_words("pattern", None)


@pytest.mark.parametrize(("caption", "found"), [
    ("A dog and a dog.", "dog dog"),  # repeated mentions count each time
    ("Two dogs, three MEN", "dog person"),
    ("A man on a horse. The dog barks. A cat", "person horse dog cat"),  # stops inside the text
    ('He says "a dog." The cat sleeps', "dog cat"),
    ("the man's dog", "person dog"),
    ("a hot dog", "hot dog"),
    ("a baby bird and an adult elephant", "bird elephant"),  # and no person
    ("a baby", "person"),
    ("a passenger jet, a passenger train", "airplane train"),
    ("a passenger", "person"),
    ("a bow tie", "tie"),
    ("a wine glass, wine glasses", "wine glass wine glass"),
    ("a glass of wine", ""),
    ("home plate, a train track", ""),  # merged, and no objects
    ("train tracks", ""),
    ("toilet seat", "toilet"),
    ("the seat of a toilet", "toilet"),  # a seat beside a toilet is no chair
    ("a seat", "chair"),
    ("a bus, a minibus", ""),  # "bu"
    ("two buses", "bus"),  # the plural of it is found
    ("a motor bike", ""), ("a motor cycle", "motorcycle"), ("a cheesecake", ""), ("an iPhone", ""),
    ("a stove top oven", "oven oven"),  # two words at most: each counts by itself
    ("a dining table", "dining table"), ("a tennis racket", "tennis racket"), ("a sports ball", "sports ball"),
    ("people on skis with scissors", "person skis scissors"),
    ("baby baby dog", "person dog"),  # from left to right
    ("a traffic light and a parking meter", "traffic light parking meter"),
    ("", ""), ("日本語の犬", ""), ("doggedly carpeted seated", ""),
])  # fmt: skip
def test_quirks_of_the_original(caption: str, found: str):
    nodes = [mention.node for mention in STRICT.mentions(caption)]
    assert " ".join(nodes) == found


def test_the_table_reading_has_none_of_the_quirks():
    words = object_words("table", None)
    caption = "a bus, two buses, a motor bike, an iPhone, a cheesecake, wine glasses and a stove top oven"
    nodes = [mention.node for mention in words.mentions(caption)]
    assert nodes == ["bus", "bus", "motorcycle", "cell phone", "cake", "wine glass", "oven"]


def test_lemmas_find_their_own_words(monkeypatch):
    """The other family of numbers: `seated` is a seat, and so a chair; tags and lemmas as NLTK gives them with WordNet
    3.0, where "men" is a lemma itself, which the list lacks, and "vas" is shorter than "vase"."""
    tags = {"seated": "VBN", "men": "NNS", "bus": "NN", "vases": "NNS", "skiing": "VBG"}
    known = {("seated", "v"): "seat", ("vases", "n"): "vas", ("skiing", "v"): "ski"}
    monkeypatch.setattr(caption_words, "pos_tag", lambda tokens: [(token, tags.get(token, "IN")) for token in tokens])
    monkeypatch.setattr(
        caption_words._lemmatizer, "lemmatize", lambda word, pos: known.get((word, pos), word), raising=False
    )
    nodes = [mention.node for mention in object_words("wordnet", None).mentions("Men seated. In a bus, vases. Skiing.")]
    assert nodes == ["chair", "bus", "skis"]


def test_missing_nltk_data_are_named_with_the_command(monkeypatch):
    def missing(tokens: list[str]) -> list[tuple[str, str]]:
        raise LookupError

    monkeypatch.setattr(caption_words, "pos_tag", missing)
    with pytest.raises(DataError, match=r"nltk\.downloader averaged_perceptron_tagger_eng wordnet"):
        object_words("wordnet", None).mentions("a dog")


WORDS = st.sampled_from(["dog", "t-shirt", "2", "1,000", "a,", ",", "dogs.", "co.", "x-", "it's"])


@given(st.lists(WORDS).map(" ".join))
@settings(deadline=None)
def test_plain_sentences_give_treebank_tokens(sentence: str):
    if caption_words._PLAIN_SENTENCE.fullmatch(sentence):
        assert caption_words._PLAIN_TOKEN.findall(sentence) == NLTKWordTokenizer().tokenize(sentence)


def test_long_texts_are_read_in_pieces():
    text = "the man's dog " * 5000
    assert len(STRICT.mentions(text)) == 10_000
    assert STRICT.mentions('"' * 20_000 + " dog") == STRICT.mentions("dog")


def test_finished_part():
    assert finished_part("A dog. It runs to the") == "A dog."
    assert finished_part("A dog. Really?\n") == "A dog. Really?"
    assert finished_part("a dog in the") == "a dog in the"  # a short caption without any stop


@public_data
def test_our_table_holds_the_public_facts():
    public = {word.strip().lower(): node for node, words in read_public_list(PUBLIC / "synonyms.txt").items()
              for word in words}
    ours = {word: node for node, words in read_table(COCO_OBJECTS).items() for word in (node, *words)}
    assert ours == public
    assert (len(set(ours.values())), len(ours)) == (80, 403)


@public_data
@pytest.mark.parametrize("synonyms", [None, PUBLIC / "synonyms.txt"])
@pytest.mark.parametrize(("model", "published"), [
    ("minigpt4", "6.7 9.5 24.7"), ("instructblip", "2.6 3.7 8.5"),
])
def test_published_models(model: str, published: str, synonyms: Path | None):
    """CHAIR_i, CHAIR_s and mean words of arXiv 2305.10355, with both word lists."""
    truth = {row["image_id"]: row["objects"] for row in _rows("objects.jsonl")}
    rows = _rows(f"captions_{model}_short.jsonl")
    result = chair(
        [row["caption"] for row in rows], [truth[row["image_id"]] for row in rows], object_words("pattern", synonyms),
        [row["image_id"] for row in rows], n_resamples=10,
    )  # fmt: skip
    found = [100 * result.chair_i.value, 100 * result.chair_s.value, result.mean_words.value]
    assert " ".join(f"{value:.1f}" for value in found) == published


def _rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (PUBLIC / name).read_text().splitlines()]
