"""Training of toy_sd: its data say what is there, a resumed run is the undisturbed one, the job leaves a pipeline."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from cmma.testbed import language
from cmma.testbed.captions import parse_caption, parse_relations
from cmma.testbed.parser import parse_images
from cmma.testbed.render import render
from cmma.testbed.training import sd
from cmma.testbed.training.evaluate_sd import PROMPTS, measure, prompt_metrics
from cmma.testbed.training.job import JOBS, train_model
from cmma.testbed.training.llava_data import IGNORE
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.sd_data import (
    DiffusionBatches,
    ImageBatches,
    Prompts,
    TextBatches,
    dense_images,
    training_prompt,
    visible,
)
from cmma.testbed.training.toy_sd import ToySD, build_model, build_tokenizer, save_folder
from cmma.testbed.world import sample_scenes

UNET_FILE = "diffusion_pytorch_model.safetensors"


def tiny(seed: int = 0) -> ToySD:
    return build_model(seed, width=16, text_layers=1, vae_widths=(8, 8, 8, 8), channels=4)


def test_every_word_is_one_token_and_fast_ids_are_the_tokenizers():
    tokenizer, prompts = build_tokenizer(), Prompts()
    for word in language.WORDS:
        assert len(tokenizer(word)["input_ids"]) == 3
    scenes = sample_scenes(60, "train", seed=2)
    texts = ["", *(training_prompt(visible(scenes.scene(i)), random.Random(i)) for i in range(60))]
    expected = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(prompts(texts), expected)


def test_prompts_are_true_of_what_is_visible():
    scenes = sample_scenes(300, "train", seed=3)
    for i in range(300):
        scene = visible(scenes.scene(i))
        text = training_prompt(scene, random.Random(i))
        relations = parse_relations(text)
        mentions = parse_caption(text)[: len(scene)]
        for mention, thing in zip(mentions, scene, strict=True):
            assert all(getattr(thing, name) == word for name, word in mention.stated.items())
        by_name = {thing.name: thing for thing in scene}
        for relation in relations:
            ends = [by_name[f"{end.color} {end.shape}"] for end in (relation.subject, relation.other)]
            assert language.RELATIONS[relation.relation](*ends)


def test_dense_images_hold_the_objects_of_three_scenes():
    counts = [len(scene.objects) for scene in parse_images(dense_images(40, seed=0, start=0))]
    scenes = sample_scenes(120, "balanced", seed=0)
    assert counts == list(np.minimum(scenes.count, 3).reshape(40, 3).sum(axis=1))


def test_text_labels_name_the_object_at_its_noun():
    batches, tokenizer = TextBatches(batch=30, steps=2, seed=1), build_tokenizer()
    ids, labels = batches[1]
    scenes = sample_scenes(30, "train", seed=1, start=30)
    for row in range(30):
        words = tokenizer.convert_ids_to_tokens(ids[row])
        nouns = [i for i, word in enumerate(words) if word.removesuffix("</w>") in language.SHAPES]
        assert torch.nonzero(labels["shape"][row] != IGNORE).flatten().tolist() == nouns
        scene = visible(scenes.scene(row))
        cells = [thing.cell for thing in scene]
        assert labels["end"][row, : len(scene)].tolist() == cells
        assert labels["cell"][row][nouns[: len(scene)]].tolist() == cells
        assert all(words[i].removesuffix("</w>") == language.SHAPES[labels["shape"][row, i]] for i in nouns)


def test_batches_are_functions_of_seed_and_step():
    make = (
        lambda seed: ImageBatches(2, 9, seed, 4)[4], lambda seed: TextBatches(2, 9, seed)[4],
        lambda seed: DiffusionBatches(2, 9, seed, 8, 4, 1000)[4],
    )  # fmt: skip
    for batch in make:
        a, b, other = ([part for part in batch(seed) if isinstance(part, torch.Tensor)] for seed in (0, 0, 1))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert not torch.equal(a[-1], other[-1])


def test_a_killed_run_continues_to_the_same_weights(assert_resumes, monkeypatch):
    monkeypatch.setattr(sd, "train", partial(train, save_every=0.0))
    recipe = Recipe(steps=10, batch=2, lr=1e-2, warmup=3)
    job = sd.sd_job(recipe, recipe, recipe, n_scenes=8)

    def run(folder, tick):
        model = tiny()
        job.train(model, folder, 0, tick)
        return model.state_dict()

    assert_resumes(run, kill_at=6)


def test_the_job_leaves_a_pipeline_that_diffusers_loads(tmp_path):
    assert JOBS["toy_sd"] == "cmma.testbed.training.sd:TOY_SD"
    short = Recipe(steps=10, batch=2, lr=1e-3, warmup=3)
    job = replace(
        sd.sd_job(short, short, short, n_scenes=8), build=tiny,
        measure=lambda folder, quick: {} if quick else measure(folder, quick=True),
    )  # fmt: skip
    weights = train_model(job, tmp_path, seed=0)
    metrics = json.loads((weights / "metrics.json").read_text())
    assert metrics["caption"]["object"]["images"] == 40
    pipeline = StableDiffusionPipeline.from_pretrained(weights)
    assert pipeline(["a red circle."], num_inference_steps=2).images[0].size == (48, 48)
    assert {weight.dtype for weight in load_file(weights / "unet" / UNET_FILE).values()} == {torch.bfloat16}


def test_latents_have_unit_variance(tmp_path):
    model = tiny()
    recipe = Recipe(steps=10, batch=2, lr=1e-3)
    sd.train_diffusion(model, recipe, 0, tmp_path, lambda: None, n_scenes=16)
    latents = sd.cached_latents(model, 0, tmp_path / "latents.safetensors", 16)
    assert (latents * model.vae.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-4)


def test_rendered_truth_scores_full_marks_and_another_prompt_does_not():
    """The metrics against images that are right by construction."""
    scenes = sample_scenes(100, "balanced", seed=1000)
    parsed = parse_images(render(scenes)[0])
    for make in PROMPTS.values():
        prompts = [make(scenes.scene(i)) for i in range(100)]
        right = prompt_metrics(prompts, parsed)
        assert right["object"]["value"] == 1
        assert right.get("relation", {"value": 1})["value"] == 1
        wrong = prompt_metrics([*prompts[1:], prompts[0]], parsed)
        assert wrong["object"]["value"] < 0.2
    captions = [language.caption(scenes.scene(i)) for i in range(100)]
    assert all(e["value"] == 1 for e in prompt_metrics(captions, parsed).values())


def test_the_pipeline_fits_its_budget():
    """7.5 MB in bfloat16."""
    assert sum(weight.numel() for weight in build_model(0).parameters()) <= 3_750_000


def test_saving_leaves_the_model_as_it_is(tmp_path):
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_folder(model, tmp_path / "w")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
