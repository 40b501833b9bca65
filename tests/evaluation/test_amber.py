"""AMBER by hand, with every rule of its released scorer, and its files through `cmma score`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from cmma.config import Config
from cmma.errors import DataError
from cmma.evaluation import amber
from cmma.evaluation.amber import AmberWords, nouns_of, printed_f1, score_description, spacy_similarity
from cmma.evaluation.scoring import amber as scoring
from cmma.evaluation.scoring.config import ScoreConfig
from cmma.stages.score import run

TABLE = {
    "person": ["people", "man"], "man": ["person"], "forest": ["tree"], "tree": ["forest"], "ship": ["boat"],
    "sky": [], "cloud": [], "bird": [], "light": [], "dog": [],
}  # fmt: skip
NEAR = {frozenset(pair) for pair in (("dog", "bird"), ("cloud", "sky"), ("boat", "dog"))}
WORDS = AmberWords(TABLE, frozenset({"light"}), lambda first, second: first == second or {first, second} in NEAR)
EXACT = AmberWords(TABLE, frozenset({"light"}), lambda first, second: False)


@pytest.mark.parametrize(("nouns", "truth", "targets", "hallucinated", "covered", "hit"), [
    ("sky tree", "sky forest", "dog", "", {0, 1}, set()),  # an associated word covers its object
    ("table Sky", "sky", "dog", "", set(), set()),  # words outside the table are no objects; capitals are kept
    ("light", "sky", "light", "", set(), set()),  # a safe word is never wrong and hits nothing
    ("ship ship dog", "sky", "dog", "ship ship dog", set(), {0}),  # repeated mentions count each time
    ("man", "man person", "", "", {1}, set()),  # associated words come before the objects' own
    ("tree", "tree forest", "", "", {1}, set()),
    ("ship", "ship ship", "", "", {0}, set()),  # an object that is annotated twice is covered once
    ("cloud", "sky", "cloud", "", {0}, {0}),  # hits a target, and is right as a near-synonym of what is there
    ("dog", "sky", "bird dog", "dog", set(), {0, 1}),  # the target that it is, and the first that it resembles
    ("dog", "ship", "", "", {0}, set()),  # resembles "boat", which is associated with the ship
    ("", "sky", "dog", "", set(), set()),
])  # fmt: skip
def test_every_rule_by_hand(nouns, truth, targets, hallucinated, covered, hit):
    found = score_description(nouns.split(), truth.split(), targets.split(), WORDS)
    assert (list(found.hallucinated), found.covered, found.hit) == (hallucinated.split(), covered, hit)


def test_without_near_synonyms_only_listed_words_count():
    found = score_description(["cloud", "dog"], ["sky"], ["cloud", "bird"], EXACT)
    assert (found.hallucinated, found.covered, found.hit) == (("cloud", "dog"), frozenset(), {0})


def test_f1_as_printed():
    """The released scorer computes it from rounded percent and adds an offset, by hand: 2 · 0.8 / 1.801 = 0.8884."""
    assert printed_f1(100, 80, existence=True) == 88.8
    assert printed_f1(100, 80, existence=False) == 88.9
    assert printed_f1(0, 0, existence=False) == 0


KINDS = ["hallucination", "attribute-state", "attribute-number", "attribute-action", "relation"]
ENTRIES = [
    {"id": 1, "type": "generative", "truth": ["sky", "forest"], "hallu": ["cloud", "bird"]},
    {"id": 2, "type": "generative", "truth": ["ship", "man"], "hallu": ["dog"]},
    *({"id": 3 + i, "type": f"discriminative-{KINDS[i % 5]}", "truth": "no" if i % 5 == 0 or i % 2 else "yes"}
      for i in range(19)),
    {"id": 22, "type": "relation", "truth": "no"},
]  # fmt: skip
ANSWERS = [{"id": 3 + i, "response": ("Yes", "No", "No", "yes")[i * 7 % 11 % 4]} for i in range(20)]


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the released form; nouns are the words, near-synonyms those of this file."""
    monkeypatch.setattr(scoring, "nouns_of", str.split)
    monkeypatch.setattr(scoring, "spacy_similarity", lambda: WORDS.similar)
    folder = tmp_path / "data"
    (folder / "query").mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(ENTRIES))
    (folder / "relation.json").write_text(json.dumps(TABLE))
    (folder / "safe_words.txt").write_text("light")
    (folder / "query" / "query_all.json").write_text(json.dumps(
        [{"id": entry["id"], "image": f"AMBER_{entry['id'] % 4}.jpg", "query": "?"} for entry in ENTRIES]))
    return folder


def score(folder: Path, rows: list[Any], **options: Any) -> dict[str, Any]:
    path = folder.parent / "responses.json"
    path.write_text(json.dumps(rows))
    references = options.pop("references", folder / "annotations.json")
    return run(Config(score=ScoreConfig("amber", str(path), str(references), n_bootstrap=200, **options)))


def test_descriptions_by_hand(released: Path, tmp_path: Path):
    rows = [{"id": 1, "response": "sky cloud ship"}, {"id": 2, "response": "man light table"}]
    found = score(released, rows, per_sample=str(tmp_path / "out.jsonl"))
    part = found["generative"]
    # Named: sky, cloud (near sky), ship; man, light. Wrong: ship. Covered: sky; man. Hit: cloud, of cloud, bird, dog.
    assert [part[name] for name in ("chair", "cover", "hal", "cog")] == [1 / 5, 2 / 4, 1 / 2, 1 / 3]
    assert part["printed"] == {"chair": 20.0, "cover": 50.0, "hal": 50.0, "cog": 33.3}
    assert part["intervals"]["hal"]["n"] == 2
    assert (found["name"], found["discriminative"], found["problems"]) == ("amber", None, {})
    samples = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert samples[0] == {"id": 1, "named": ["sky", "cloud", "ship"], "hallucinated": ["ship"], "covered": ["sky"],
                          "hit": ["cloud"]}  # fmt: skip
    other = score(released, rows, variant="words", references=released)
    assert (other["name"], "generative" in other, "printed" in other["generative_words"]) == (
        "amber_words", False, False)  # fmt: skip
    assert other["generative_words"]["chair"] == 2 / 5


def test_answers_equal_scikit_learn(released: Path):
    found = score(released, [*ANSWERS, {"id": 1, "response": "sky"}, {"id": 2, "response": "dog"}])
    groups = {
        "overall": range(3, 23), "existence": range(3, 22, 5), "state": range(4, 22, 5), "number": range(5, 22, 5),
        "action": range(6, 22, 5), "relation": [7, 12, 17, 22],
        "attribute": [n for n in range(3, 22) if (n - 3) % 5 in (1, 2, 3)],
    }  # fmt: skip
    truth = {entry["id"]: entry["truth"] for entry in ENTRIES}
    said = {row["id"]: {"Yes": "yes", "No": "no"}.get(row["response"], "neither") for row in ANSWERS}
    assert found["discriminative"].keys() == groups.keys()
    for group, numbers in groups.items():
        ours, theirs = found["discriminative"][group], ([d[n] for n in numbers] for d in (truth, said))
        true, answered = theirs
        expected = precision_recall_fscore_support(true, answered, labels=["no"], zero_division=float("nan"))
        assert ours["accuracy"] == accuracy_score(true, answered)
        assert [ours[name] for name in ("precision", "recall", "f1")] == pytest.approx(
            [float(value[0]) for value in expected[:3]], nan_ok=True)
        assert ours["intervals"]["accuracy"]["n"] == len({n % 4 for n in numbers})
    assert found["problems"]["answer_neither_Yes_nor_No"]["n"] == sum(value == "neither" for value in said.values())
    assert found["amber_score"] == (1 - found["generative"]["chair"] + found["discriminative"]["overall"]["f1"]) / 2


def test_unusable_input_is_counted_and_named(released: Path):
    (released / "annotations.json").write_text(json.dumps([
        *ENTRIES, ENTRIES[0], {"id": "x"}, {"id": 90, "type": "generative", "truth": ["a"]},
        {"id": 91, "type": "relation", "truth": "maybe"}, 5,
    ]))
    (released / "query" / "query_all.json").unlink()
    rows = [{"id": 1, "response": ""}, {"id": 1, "response": "sky"}, {"id": 2}, {"id": 99, "response": "sky"}, [],
            {"id": True, "response": "sky"}, {"id": 3, "response": "No"}, {"id": 2, "response": "sky " * 30_000}]
    found = score(released, rows)
    assert {kind: entry["n"] for kind, entry in found["problems"].items()} == {
        "annotation_again": 1, "annotation_without_id_or_type": 1, "annotation_without_truth": 2, "malformed_row": 2,
        "empty_text": 1, "answer_again": 1, "row_without_text": 1, "unknown_id": 2, "text_too_long": 1,
        "annotation_without_response": 4, "no_intervals_of_answers": 1,
    }  # fmt: skip
    assert found["generative"]["n_mentions"] == 0
    assert found["discriminative"]["existence"]["intervals"] is None


def test_what_is_missing_is_one_line(released: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise LookupError("\n*** no such resource ***\n")

    monkeypatch.setattr(amber, "word_tokenize", refuse)
    monkeypatch.setitem(sys.modules, "spacy", None)
    for call, message in (
        (lambda: nouns_of("a dog"), "run: python -m nltk.downloader punkt_tab"),
        (spacy_similarity, "run: pip install spacy && python -m spacy download en_core_web_lg"),
        (lambda: score(released, [{"id": 77, "response": "x"}]), r"not one response .* unknown id: 1"),
        (lambda: score(released, [], references=released / "safe_words.txt"), "not one usable annotation"),
    ):
        with pytest.raises(DataError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    (released / "relation.json").unlink()
    assert score(released, ANSWERS)["generative"] is None  # answers need no words
    with pytest.raises(DataError, match=r"descriptions need relation\.json"):
        score(released, [{"id": 1, "response": "sky"}])
