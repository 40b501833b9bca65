"""The shipped models load through the plain libraries and do what their metrics say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import cmma.testbed
from cmma.testbed.generate import generate_samples

WEIGHTS = Path(cmma.testbed.__file__).parent / "weights"
LLAVA, CLIP = WEIGHTS / "toy_llava", WEIGHTS / "toy_clip"


def shipped(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    model = LlavaForConditionalGeneration.from_pretrained(LLAVA, dtype=torch.float32).eval()
    return model, LlavaProcessor.from_pretrained(LLAVA)


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 25e6


def test_toy_llava_has_twelve_language_layers_and_36_image_tokens(llava):
    model, processor = llava
    assert len(model.model.language_model.layers) == 12
    sample = next(generate_samples("balanced", 0, 1))
    ids = processor(images=sample.image, text="USER: <image>\nis there a star? ASSISTANT:")["input_ids"][0]
    assert list(ids).count(model.config.image_token_id) == 36


def test_toy_llava_answers_as_its_metrics_say(llava):
    from cmma.testbed.training.evaluate_llava import question_accuracy

    fresh = list(generate_samples("balanced", 0, 60, seed=77, questions_per_image=4))
    measured = question_accuracy(*llava, fresh)["all"]
    stated = shipped(LLAVA)["questions_balanced"]["all"]
    assert stated["value"] >= 0.95
    assert stated["n"] >= 2000
    assert measured["low"] <= stated["high"]
    assert stated["low"] <= measured["high"]


def test_toy_llava_hallucinates_the_partner_where_the_trigger_stands_alone(llava):
    from cmma.testbed.training.evaluate_llava import caption_metrics

    metrics = shipped(LLAVA)
    for name in ("chair_i_shape", "chair_s_shape"):
        assert metrics["captions_counter"][name]["low"] > metrics["captions_balanced"][name]["high"]
    fresh = list(generate_samples("counter", 0, 40, seed=77, questions_per_image=0))
    measured = caption_metrics(*llava, fresh)["chair_s_shape"]
    stated = metrics["captions_counter"]["chair_s_shape"]
    assert measured["low"] <= stated["high"]
    assert stated["low"] <= measured["high"]


def test_toy_clip_retrieves_as_its_metrics_say():
    from cmma.testbed.training.evaluate_clip import retrieval

    stated = shipped(CLIP)["retrieval_balanced"]
    measured = retrieval(CLIP, 100, seed=77)
    for name in ("image_to_text_r@1", "text_to_image_r@1"):
        assert stated[name]["value"] >= 0.80
        assert measured[name]["low"] <= stated[name]["high"]
        assert stated[name]["low"] <= measured[name]["high"]
