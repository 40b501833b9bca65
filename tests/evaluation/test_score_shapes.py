"""`metric=scene` and `metric=controllability`: files of the shapes world, by hand and against the functions behind."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmma.config import Config
from cmma.control.trials import FACTORS, Trial, draw_trials
from cmma.data.samples import Sample
from cmma.data.tars import write_tar
from cmma.errors import DataError
from cmma.evaluation.scoring.config import ScoreConfig
from cmma.stages.score import run
from cmma.testbed.generate import generate_samples
from cmma.testbed.render import render
from cmma.testbed.scenes import scenes_of

SAMPLES = [sample for sample in generate_samples("balanced", 0, 40) if all(o["visible"] for o in sample.objects)]
SCENE = {
    "image_id": 1,
    "objects": [
        {"shape": "circle", "color": "red", "size": "large", "texture": "striped"},
        {"shape": "ring", "color": "blue", "size": "small", "texture": "solid", "visible": True},
        {"shape": "star", "color": "yellow", "size": "small", "texture": "solid", "visible": False},
    ],
    "relations": [[0, "left of", 1], [1, "right of", 0]],
}


def score(folder: Path, metric: str, rows: Sequence[Any], references: Any, **options: Any) -> dict[str, Any]:
    def written(name: str, content: Any) -> str:
        if isinstance(content, Path):
            return str(content)
        (folder / name).write_text("\n".join(map(json.dumps, content)))
        return str(folder / name)

    paths = written("predictions.jsonl", rows), written("references.jsonl", references)
    return run(Config(score=ScoreConfig(metric, *paths, n_bootstrap=200, **options)))


def test_scene_by_hand(tmp_path: Path):
    caption = "a red circle, a green ring, a yellow star. the circle is right of the ring."
    rows = [{"image_id": "1", "caption": caption}, {"key": 1, "caption": "a ring"}]
    found = score(tmp_path, "scene", rows, [SCENE], per_sample=str(tmp_path / "out.jsonl"))
    # Mentions: circle, ring, star, circle, ring, ring; the star is not to be seen; the ring is not green.
    assert [found[name] for name in ("objects", "attributes", "relations", "described")] == [1 / 6, 1 / 2, 1, 3 / 4]
    assert [found[name] for name in ("n_mentions", "n_attributed", "n_relations", "n_captions", "n_images")] == [
        6, 2, 1, 2, 1]  # fmt: skip
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (first["absent_objects"], first["wrong_attributes"], first["wrong_relations"]) == (1, 1, 1)


def test_prepared_tars_are_references(tmp_path: Path):
    """True captions hallucinate nothing; with the captions of their neighbours they do."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(folder / "balanced-000000.tar", SAMPLES[:20])
    write_tar(folder / "balanced-000001.tar", SAMPLES[20:])
    rows = [{"split": "balanced", "key": sample.key, "caption": sample.caption} for sample in SAMPLES]
    for references, n in ((folder, len(SAMPLES)), (folder / "balanced-000000.tar", 20)):
        found = score(tmp_path, "scene", rows, references)
        assert [found[name] for name in ("objects", "attributes", "relations", "described")] == [0, 0, 0, 1]
        assert found["n_captions"] == n
        assert found["problems"].get("unknown_image", {"n": 0})["n"] == len(SAMPLES) - n
    turned = [{**row, "caption": other["caption"]} for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)]
    assert score(tmp_path, "scene", turned, folder)["objects"] > 0.3


def test_scenes_that_are_none_are_named(tmp_path: Path):
    def scene(number: int, **changes: Any) -> dict[str, Any]:
        return SCENE | {"image_id": number} | changes

    truth = [
        SCENE, SCENE, scene(2, objects=[]), scene(3, relations=None), scene(4, relations=[[0, "beside", 1]]),
        scene(5, relations=[[0, "left of", 7]]), scene(6, objects=[{"shape": "circle"}]),
        scene(7, relations=[[0, [], 1]]), scene(99, objects=5),
    ]  # fmt: skip
    rows = [{"image_id": number, "caption": "a ring"} for number in range(1, 9)]
    found = score(tmp_path, "scene", rows, truth)
    assert {kind: entry["n"] for kind, entry in found["problems"].items()} == {
        "reference_again": 1, "reference_without_scene": 6, "unknown_image": 7}  # fmt: skip
    assert math.isnan(found["attributes"])  # none was stated: undefined, and null in the JSON
    assert math.isnan(found["relations"])
    with pytest.raises(DataError, match="not one caption of an image whose scene"):
        score(tmp_path, "scene", rows[1:], truth)


def _row(trial: Trial, **results: str) -> dict[str, Any]:
    return {"image_id": trial.sample.key, "factor": trial.factor, "object": trial.objects[0], "target": trial.target,
            **results}  # fmt: skip


def _scenes(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [{"image_id": sample.key, **sample.meta} for sample in samples]


def test_captions_changed_as_asked_and_not_at_all(tmp_path: Path):
    trials = [trial for factor in FACTORS for trial in draw_trials(SAMPLES, factor, 0)]
    done = [_row(trial, before=trial.sample.caption, after=trial.changed_prompt()) for trial in trials]
    found = score(tmp_path, "controllability", done, _scenes(SAMPLES))
    assert [found[name] for name in ("success", "precision", "preservation")] == [1, 1, 1]
    assert (found["n_trials"], found["n_images"]) == (len(trials), len(SAMPLES))
    assert list(found["dimensions"]) == ["object", "style", "attribute", "composition"]
    nothing = score(tmp_path, "controllability", [row | {"after": row["before"]} for row in done], _scenes(SAMPLES))
    assert (nothing["success"], nothing["preservation"], nothing["intervals"]["precision"]["value"]) == (0, 1, None)


def test_side_effects_by_hand(tmp_path: Path):
    """Two objects with four factors; the overall numbers are means of the dimensions."""
    things = [dict(SCENE["objects"][0], visible=True), SCENE["objects"][1]]
    truth = [{"image_id": n, "objects": things, "relations": SCENE["relations"]} for n in (1, 2)]
    before = "a large striped red circle, a small solid blue ring."
    asked = {"factor": "color", "object": 0, "target": "green", "before": before}
    rows = [
        {"image_id": 1, **asked, "after": "a large striped green circle, a small solid blue ring."},
        {"image_id": 2, **asked, "after": "a small dotted green circle, a small solid blue ring."},  # two more changes
        {"image_id": 1, **asked, "factor": "shape", "target": "star", "after": before},
    ]  # fmt: skip
    found = score(tmp_path, "controllability", rows, truth, per_sample=str(tmp_path / "out.jsonl"))
    attribute, shape = found["dimensions"]["attribute"], found["dimensions"]["object"]
    assert [attribute[name]["value"] for name in ("success", "precision", "preservation")] == [1, 2 / 4, 12 / 14]
    assert [shape[name]["value"] for name in ("success", "preservation")] == [0, 1]
    assert (found["success"], found["preservation"]) == (0.5, pytest.approx((12 / 14 + 1) / 2))
    assert [json.loads(line)["changed"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 3, 0]


def test_images_are_parsed(tmp_path: Path):
    """Rendered again with the change that was asked for, and with none."""
    trials = draw_trials(SAMPLES[:6], "color", 0)
    sides = [[trial.sample.objects for trial in trials], [trial.changed_objects() for trial in trials]]
    for name, scenes in zip(("old", "new"), sides, strict=True):
        for number, pixels in enumerate(render(scenes_of(scenes, range(len(scenes))))[0]):
            Image.fromarray(pixels).save(tmp_path / f"{name}{number}.png")
    rows = [_row(trial, before_image=f"old{i}.png", after_image=f"{'new' if i % 2 else 'old'}{i}.png")
            for i, trial in enumerate(trials)]  # fmt: skip
    found = score(tmp_path, "controllability", rows, _scenes(SAMPLES[:6]))
    assert (found["success"], found["precision"], found["preservation"], found["n_trials"]) == (0.5, 1, 1, 6)


def test_trials_that_cannot_be_used_are_named(tmp_path: Path):
    two = next(sample for sample in SAMPLES if len(sample.objects) == 2)
    good = _row(draw_trials([two], "shape", 0)[0], before=two.caption, after=two.caption)
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [
        good, 7, {**good, "image_id": "other"}, {**good, "factor": "mood"}, {**good, "factor": ["shape"]},
        {**good, "object": 2}, {**good, "object": True}, {**good, "target": "red"},
        {**good, "target": two.objects[good["object"]]["shape"]}, {**good, "factor": "places", "target": "beside"},
        {**good, "after": None}, {**good, "before": "a ring."}, {**good, "before": ""},
        {**good, "before_image": "bad.png", "after_image": "none.png"},
    ]  # fmt: skip
    found = score(tmp_path, "controllability", rows, _scenes(SAMPLES))
    assert {kind: entry["n"] for kind, entry in found["problems"].items()} == {
        "malformed_row": 1, "unknown_image": 1, "trial_that_cannot_be": 7, "trial_without_results": 1,
        "another_scene_before_the_edit": 2, "unreadable_image": 2,
    }  # fmt: skip
    assert found["n_trials"] == 1
    with pytest.raises(DataError, match="not one trial whose result shows its scene"):
        score(tmp_path, "controllability", rows[1:], _scenes(SAMPLES))
