"""`cmma score` on files: what is read, and that nothing unusable passes in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmma.config import Config
from cmma.errors import ConfigError, DataError
from cmma.evaluation.scoring.config import ScoreConfig
from cmma.evaluation.scoring.rows import image_key
from cmma.stages.score import run

POPE = Path(__file__).parents[3] / "shared" / "data" / "pope"
Score = Callable[..., dict[str, Any]]


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Score:
    """Write rows to files and run one metric on them: the JSON object that is printed."""
    def call(metric: str, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        inputs = {}
        for name, rows in (("predictions", predictions), ("references", references)):
            if not isinstance(rows, Path):
                path = tmp_path / f"{name}.jsonl"
                lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
                path.write_bytes(b"\n".join(lines))
                rows = path
            inputs[name] = str(rows)
        run(Config(score=ScoreConfig(metric, **inputs, n_bootstrap=200, **options)))
        out, call.err = capsys.readouterr()  # type: ignore[attr-defined]
        return json.loads(out)

    return call


OBJECTS = [{"image_id": 1, "objects": ["dog", "person"]}, {"image": "COCO_val2014_000000000002.jpg", "objects": []}]


def test_chair_by_hand_with_samples(score: Score, tmp_path: Path):
    rows = [{"image_id": 1, "caption": "A man, a dog, a cat and a cat."}, {"image_id": 2, "caption": "Nothing here."}]
    found = score("chair", rows, OBJECTS, per_sample=str(tmp_path / "out.jsonl"))
    assert (found["chair_i"], found["chair_s"], found["recall"], found["mean_words"]) == (0.5, 0.5, 1.0, 5.5)
    assert (found["n_captions"], found["n_mentions"], found["n_hallucinated"]) == (2, 4, 2)
    assert found["problems"] == {}
    samples = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [pair[0] for pair in samples[0]["mentions"]] == ["man", "dog", "cat", "cat"]
    assert samples[0]["hallucinated"] == [["cat", "cat"]] * 2


def test_unusable_input_is_counted_and_named(score: Score):
    rows = [
        b'{"image_id": 1, "caption": "A dog."}', b"{broken", b"[1]", b'"text"', b"\xff\xfe\x00", b"",
        {"caption": "no image"}, {"image_id": float("nan"), "caption": "a dog"}, {"image_id": 1, "caption": None},
        {"image_id": 1, "caption": float("nan")}, {"image_id": 1, "caption": ""}, {"image_id": 1, "caption": "一只狗"},
        {"image_id": 99, "caption": "a dog"}, {"image_id": 1, "caption": "dog " * 2_500_000},
    ]  # fmt: skip
    truth = [*OBJECTS, {"image_id": 1, "objects": ["dog", "unicorn"]}, {"image_id": 3, "objects": "dog"}]
    found = score("chair", rows, truth)
    counts = {kind: entry["n"] for kind, entry in found["problems"].items()}
    assert counts == {
        "malformed_row": 4, "row_without_image": 2, "row_without_text": 2, "empty_text": 1,
        "text_in_another_language": 1, "image_again": 2, "unknown_image": 1, "text_too_long": 1, "reference_again": 1,
        "row_without_objects": 1, "unknown_object": 1,
    }  # fmt: skip
    assert found["problems"]["unknown_image"]["examples"] == ["99"]
    assert found["problems"]["text_too_long"]["examples"] == ["predictions.jsonl line 14, 10,000,000 characters"]
    assert found["problems"]["unknown_object"]["examples"] == ["unicorn"]
    assert (found["n_captions"], found["n_images"], found["n_mentions"], found["chair_s"]) == (3, 1, 1, 0)
    assert len(score.err.strip().splitlines()) == len(counts)  # type: ignore[attr-defined]


def test_undefined_is_null_and_no_zero(score: Score):
    found = score("chair", [{"image_id": 2, "caption": "Blue sky."}], OBJECTS)
    assert (found["chair_i"], found["recall"], found["chair_s"]) == (None, None, 0)


@pytest.mark.parametrize(("rows", "message"), [
    ([], "not one caption of an image that the references know"),
    ([{"image_id": 7, "caption": "a dog"}], r"unknown image: 1 \(such as 7\)"),
    ([b"{"], r"malformed row: 1 \(such as predictions.jsonl line 1\)"),
    ([b"[{"], "begins like a JSON list"),
])  # fmt: skip
def test_nothing_to_score_is_one_line(score: Score, rows: list, message: str):
    with pytest.raises(DataError, match=message) as error:
        score("chair", rows, OBJECTS)
    assert "\n" not in str(error.value)


def test_coco_annotations(score: Score, tmp_path: Path):
    """Truth is the categories annotated and what the reference captions mention."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "instances_val2014.json").write_text(json.dumps({
        "images": [{"id": 1}, {"id": 2}], "categories": [{"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 5, "category_id": 18}],
    }))
    (folder / "captions_val2014.json").write_text(json.dumps({"annotations": [
        {"image_id": 1, "caption": "A lady walks."}, {"image_id": 2, "caption": "Grass."},
    ]}))
    rows = [{"image_id": 1, "caption": "A dog, a man and a cat."}, {"image_id": 2, "caption": "A dog."}]
    found = score("chair", rows, folder)
    assert (found["n_mentions"], found["n_hallucinated"], found["recall"]) == (4, 2, 1)
    assert score("bleu", [{"image_id": 1, "caption": "A lady walks."}], folder)["bleu_1"] == pytest.approx(100)
    (folder / "instances_val2014.json").write_text("{}")
    with pytest.raises(DataError, match="no usable section 'categories'"):
        score("chair", rows, folder)
    (folder / "instances_val2014.json").unlink()
    with pytest.raises(DataError, match=r"holds no instances_\*\.json"):
        score("chair", rows, folder)


def test_own_word_list_and_unfinished_sentences(score: Score, tmp_path: Path):
    table = tmp_path / "zoo.txt"
    table.write_text("big cat: lion, tiger\nwren:\n")
    truth, rows = [{"image": "a.png", "objects": ["big cat"]}], [{"image": "a", "caption": "Lions. Wrens. And a wr"}]
    found = score("chair", rows, truth, synonyms=str(table), unfinished="drop", normalizer="table")
    assert (found["n_mentions"], found["n_hallucinated"], found["mean_words"], found["word_list"]) == (2, 1, 2, "zoo")
    with pytest.raises(ConfigError, match=r"metric=bleu has no metric\.normalizer; it has metric\.variant"):
        ScoreConfig("bleu", normalizer="table")


@pytest.mark.parametrize(("value", "key"), [
    (42, "42"), ("42", "42"), ("000000000042.jpg", "42"), ("COCO_val2014_000000000042.jpg", "42"),
    ("val/COCO_train2014_000000000042.JPG", "42"), ("cat.png", "cat"), ("v1.5", "v1.5"), ("n01443537.jpg", "n01443537"),
    (None, None), (True, None), ("", None), (4.2, None), ([1], None),
])  # fmt: skip
def test_one_image_has_one_key(value: object, key: str | None):
    assert image_key(value) == key


QUESTIONS = [
    {"question_id": n, "image": f"{n // 2}.jpg", "text": "Is there a dog?", "label": label}
    for n, label in enumerate(["yes", "no", "yes", "no"])
]


def test_pope_by_number_and_by_order(score: Score):
    texts = ["Yes.", "Yes, it is", "No", "There is not."]
    numbered = [{"question_id": n, "answer": text} for n, text in enumerate(texts)][::-1]
    for rows in (numbered, [{"text": text} for text in texts]):
        found = score("pope", rows, QUESTIONS)
        assert [found[name] for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")] == [0.5] * 5
        assert (found["n_questions"], found["n_yes"], found["n_images"], found["problems"]) == (4, 2, 2, {})


def test_pope_names_what_is_missing(score: Score):
    rows = [{"question_id": 0, "answer": "yes"}, {"question_id": 0, "answer": "no"}, {"question_id": 9, "answer": "no"},
            {"question_id": 1, "answer": ""}, {"question_id": 2, "answer": 3}]  # fmt: skip
    found = score("pope", rows, [*QUESTIONS, {"question_id": 5, "image": "x", "label": "maybe"}, QUESTIONS[0]])
    assert {kind: entry["n"] for kind, entry in found["problems"].items()} == {
        "answer_again": 1, "unknown_question": 1, "empty_text": 1, "row_without_text": 1, "question_without_answer": 2,
        "question_without_label": 1, "question_again": 1,
    }  # fmt: skip
    assert (found["n_questions"], found["accuracy"], found["n_unclear"]) == (2, 0.5, 1)
    with pytest.raises(DataError, match="1 usable answers without question_id to 4 questions"):
        score("pope", [{"answer": "yes"}], QUESTIONS)


@pytest.mark.skipif(not POPE.is_dir(), reason="the development data is not here")
@pytest.mark.parametrize("split", ["random", "popular", "adversarial"])
def test_pope_as_released(score: Score, split: str):
    """3,000 questions about 500 images, half of them yes; always yes is right in half, with F1 of 2/3."""
    path = POPE / f"coco_pope_{split}.json"
    found = score("pope", [{"answer": "yes"}] * 3000, path)
    assert (found["n_questions"], found["n_yes"], found["n_images"], found["problems"]) == (3000, 1500, 500, {})
    assert (found["accuracy"], found["recall"], found["yes_ratio"]) == (0.5, 1, 1)
    assert found["f1"] == pytest.approx(2 / 3)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six images, and the same with a little noise; one of each folder is damaged, one has no partner."""
    rng = np.random.default_rng(0)
    made, real = tmp_path / "made", tmp_path / "real"
    for folder in (made, real):
        folder.mkdir()
        (folder / "bad.png").write_bytes(b"no image")
    for number in range(6):
        pixels = rng.integers(0, 240, (32, 48, 3), np.uint8)
        Image.fromarray(pixels).save(real / f"{number}.png")
        Image.fromarray(pixels + rng.integers(0, 9, pixels.shape, np.uint8)).save(made / f"{number}.png")
    Image.fromarray(pixels).save(made / "alone.png")
    Image.fromarray(pixels[:20]).save(made / "3.png")
    return made, real


def test_folders_of_images(score: Score, folders: tuple[Path, Path]):
    made, real = folders
    pairs = score("ssim", made, real)
    assert pairs["n_pairs"] == 5
    assert 0.9 < pairs["value"] < 1
    assert {kind: entry["n"] for kind, entry in pairs["problems"].items()} == {
        "image_without_reference": 1, "unreadable_image": 2, "pair_without_value": 1
    }
    assert pairs["problems"]["pair_without_value"]["examples"] == ["3: sizes (48, 20) and (48, 32) differ"]
    for metric, name in (("fid", "fd_toy_clip"), ("kid", "kd_toy_clip"), ("cmmd", "mmd_toy_clip")):
        found = score(metric, made, real, encoder="toy_clip")
        assert (found["name"], found["n_predictions"], found["n_references"]) == (name, 7, 6)
        assert found["problems"]["unreadable_image"]["n"] == 2
    assert score("cmmd", real, real, encoder="toy_clip")["value"] == pytest.approx(0, abs=1e-9)


def test_captions_of_images_either_way_round(score: Score, folders: tuple[Path, Path], tmp_path: Path):
    _, real = folders
    rows = [{"image": "1.png", "caption": "a red circle"}, {"image": 2, "caption": "a star"}]
    rows.append({"image": "x", "caption": "a"})
    references = tmp_path / "more.jsonl"
    references.write_text('{"image": 1, "captions": ["a red circle", "a ring"]}\n')
    found = score("clip_score", rows, real, encoder="toy_clip", captions=str(references))
    clip_s = found["intervals"]["clip_score_toy_clip"]
    assert (found["n_captions"], clip_s["n"]) == (2, 2)
    assert found["intervals"]["ref_clip_score_toy_clip"]["n"] == 1
    assert {"unknown_image", "image_without_reference"} <= found["problems"].keys()
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    turned = score("clip_score", real, tmp_path / "rows.jsonl", encoder="toy_clip")
    assert turned["clip_score_toy_clip"] == found["clip_score_toy_clip"]
    with pytest.raises(DataError, match="no caption names an image"):
        score("clip_score", [{"image": "x", "caption": "a"}], real, encoder="toy_clip")


@pytest.mark.parametrize(("options", "message"), [
    (ScoreConfig(), "needs predictions=PATH: captions.jsonl"),
    (ScoreConfig(predictions="a"), "needs references=PATH"),
    (ScoreConfig("lpips", "a", "b"), r"needs metric\.weights=FILE"),
])  # fmt: skip
def test_what_is_not_given_is_asked_for(options: ScoreConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        run(Config(score=options))
