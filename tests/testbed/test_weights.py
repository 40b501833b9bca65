"""The shipped models load through the plain libraries and do what their metrics say."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import cmma.testbed
from cmma.testbed.generate import generate_samples
from cmma.testbed.training.job import JOBS

WEIGHTS = Path(cmma.testbed.__file__).parent / "weights"
THREE_LINES = {
    "llava": """
from transformers import LlavaForConditionalGeneration, LlavaProcessor
model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
processor = LlavaProcessor.from_pretrained(FOLDER)
""",
    "clip": """
import open_clip
model, _, transform = open_clip.create_model_and_transforms("local-dir:" + FOLDER)
tokenizer = open_clip.get_tokenizer("local-dir:" + FOLDER)
""",
    "blip": """
from transformers import BlipForQuestionAnswering, BlipProcessor
model = BlipForQuestionAnswering.from_pretrained(FOLDER)
processor = BlipProcessor.from_pretrained(FOLDER)
""",
    "sd": """
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(FOLDER)
image = pipeline("a red circle.", num_inference_steps=2).images[0]
""",
}
FORBID_CMMA = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cmma":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Forbid())
"""


def shipped(name: str, file: str = "metrics.json") -> dict:
    return json.loads((WEIGHTS / name / file).read_text())


def overlaps(measured: dict, stated: dict) -> bool:
    return measured["low"] <= stated["high"] and stated["low"] <= measured["high"]


@cache
def llava(name: str):
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS / name, dtype=torch.float32).eval()
    return model, LlavaProcessor.from_pretrained(WEIGHTS / name)


def test_all_weights_together_are_small():
    assert {path.name for path in WEIGHTS.iterdir()} == set(JOBS)
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 25e6


@pytest.mark.parametrize("name", JOBS)
def test_the_weights_load_in_three_lines_without_cmma(name, tmp_path):
    lines = THREE_LINES[name.split("_")[1]].replace("FOLDER", repr(str(WEIGHTS / name)))
    done = subprocess.run(
        [sys.executable, "-c", FORBID_CMMA + lines], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", JOBS)
def test_the_recipe_is_stored_beside_the_weights(name):
    recipe = shipped(name, "recipe.json")
    assert recipe["command"] == f"make testbed MODEL={name}"
    assert {"seed", "device", "parameters", "minutes", "stages"} <= set(recipe)


@pytest.mark.parametrize("name", ["toy_llava", "toy_llava_large"])
def test_toy_llava_has_twelve_language_layers_and_36_image_tokens(name):
    model, processor = llava(name)
    assert len(model.model.language_model.layers) == 12
    sample = next(generate_samples("balanced", 0, 1))
    ids = processor(images=sample.image, text="USER: <image>\nis there a star? ASSISTANT:")["input_ids"][0]
    assert list(ids).count(model.config.image_token_id) == 36


@pytest.mark.parametrize("name", ["toy_llava", "toy_llava_large"])
def test_toy_llava_answers_as_its_metrics_say(name):
    from cmma.testbed.training.evaluate_llava import question_accuracy

    fresh = list(generate_samples("balanced", 0, 60, seed=77, questions_per_image=4))
    stated = shipped(name)["questions_balanced"]["all"]
    assert stated["value"] >= 0.95
    assert stated["n"] >= 2000
    assert overlaps(question_accuracy(*llava(name), fresh)["all"], stated)


@pytest.mark.parametrize("name", ["toy_llava", "toy_llava_large"])
def test_toy_llava_hallucinates_the_planted_partner_on_the_counter_split_only(name):
    from cmma.testbed.training.evaluate_llava import caption_metrics

    balanced, counter = (shipped(name)[f"captions_{split}"]["chair_s_shape"] for split in ("balanced", "counter"))
    assert counter["low"] > balanced["high"]
    fresh = list(generate_samples("counter", 0, 40, seed=77, questions_per_image=0))
    assert overlaps(caption_metrics(*llava(name), fresh)["chair_s_shape"], counter)


@pytest.mark.parametrize("name", ["toy_clip", "toy_clip_large"])
def test_toy_clip_retrieves_as_its_metrics_say(name):
    from cmma.testbed.training.evaluate_clip import retrieval

    stated = shipped(name)["retrieval_balanced"]
    measured = retrieval(WEIGHTS / name, 100, seed=77)
    for direction in ("image_to_text_r@1", "text_to_image_r@1"):
        assert stated[direction]["value"] >= 0.80
        assert overlaps(measured[direction], stated[direction])
