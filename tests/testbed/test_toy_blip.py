"""Training of toy_blip: packed questions are single ones, a killed run continues, a job runs to its end."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import torch
from transformers import BlipForQuestionAnswering, BlipProcessor

from cmma.testbed.generate import generate_samples
from cmma.testbed.training import blip
from cmma.testbed.training.evaluate_blip import generate_answers, measure
from cmma.testbed.training.job import JOBS, train_model
from cmma.testbed.training.llava_data import IGNORE
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.toy_blip import build_config, build_model, build_processor, save_folder


def tiny() -> BlipForQuestionAnswering:
    return build_model(0, build_config(width=16, text_layers=2, vision_layers=1))


@torch.no_grad()
def test_a_packed_question_is_the_question_alone():
    """Against transformers' own towers on one image and one unpadded question."""
    model, batch = tiny().eval(), blip.QuestionBatches(batch=3, steps=2, seed=0)[1]
    packed_BQAV = blip.answer_logits(model, batch["pixel_values"], batch["question_ids"], batch["answer_ids"])
    lengths = set()
    for image, number in ((0, 0), (1, 7), (2, 11)):
        ids_T = batch["question_ids"][image, number]
        ids_T = ids_T[ids_T != model.decoder_pad_token_id]
        span = int((batch["targets"][image, number] != IGNORE).sum())
        answer_A = batch["answer_ids"][image, number, :span]
        image_PD = model.vision_model(batch["pixel_values"][image : image + 1]).last_hidden_state
        question_TD = model.text_encoder(input_ids=ids_T[None], encoder_hidden_states=image_PD).last_hidden_state
        alone_AV = model.text_decoder(input_ids=answer_A[None], encoder_hidden_states=question_TD).logits[0]
        torch.testing.assert_close(packed_BQAV[image, number, :span], alone_AV, atol=1e-5, rtol=1e-5)
        lengths.add(len(ids_T))
    assert len(lengths) > 1


def test_training_ids_are_the_processors():
    processor, batches = build_processor(), blip.QuestionBatches(batch=1, steps=1, seed=0)
    sample = next(generate_samples("train", 0, 1, seed=0))
    batch = batches[0]
    for ids_T, answer_A, target_A in zip(
        batch["question_ids"][0], batch["answer_ids"][0], batch["targets"][0], strict=True
    ):
        text = processor.tokenizer.decode(ids_T, skip_special_tokens=True)
        again = processor(images=sample.image, text=text, return_tensors="pt")
        assert ids_T[ids_T != 0].tolist() == again["input_ids"][0].tolist()
        torch.testing.assert_close(batch["pixel_values"][:1], again["pixel_values"], atol=1e-5, rtol=0)
        said = target_A[target_A != IGNORE]
        assert said[-1] == processor.tokenizer.sep_token_id
        assert answer_A[: len(said)].tolist() == [processor.tokenizer.bos_token_id, *said[:-1].tolist()]


def test_batches_are_functions_of_seed_and_step():
    a, b, other = (blip.QuestionBatches(2, 9, seed)[4] for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["question_ids"], other["question_ids"])


def test_a_killed_run_continues_to_the_same_weights(assert_resumes, monkeypatch):
    monkeypatch.setattr(blip, "train", partial(train, save_every=0.0))

    def run(folder, tick):
        model = tiny()
        blip.train_questions(model, Recipe(steps=10, batch=2, lr=1e-2, warmup=3), 0, folder / "stage.safetensors", tick)
        return model.state_dict()

    assert_resumes(run, kill_at=6)


def test_the_job_leaves_a_folder_that_transformers_loads(tmp_path):
    assert JOBS["toy_blip"] == "cmma.testbed.training.blip:TOY_BLIP"
    short = Recipe(steps=10, batch=2, lr=1e-3, warmup=3)
    job = replace(
        blip.blip_job(short, short), build=lambda seed: tiny(),
        measure=lambda folder, quick: {} if quick else measure(folder, quick=True),
    )  # fmt: skip
    weights = train_model(job, tmp_path, seed=0)
    metrics = json.loads((weights / "metrics.json").read_text())["questions_balanced"]
    assert metrics["all"]["n"] == 400
    assert metrics["all"]["images"] == 50
    model = BlipForQuestionAnswering.from_pretrained(weights)
    assert model.dtype == torch.bfloat16


def test_batched_answers_are_those_of_one_question_at_a_time(tmp_path):
    save_folder(tiny(), tmp_path / "w", dtype=torch.float32)
    model = BlipForQuestionAnswering.from_pretrained(tmp_path / "w").eval()
    processor = BlipProcessor.from_pretrained(tmp_path / "w")
    samples = list(generate_samples("balanced", 0, 3, seed=5))
    asked = [(sample.image, q.question) for sample in samples for q in sample.questions]
    together = generate_answers(model, processor, *zip(*asked, strict=True))
    alone = [generate_answers(model, processor, [image], [question])[0] for image, question in asked]
    assert together == alone


def test_the_model_fits_its_budget():
    """3 MB in bfloat16."""
    assert sum(weight.numel() for weight in build_model(0).parameters()) <= 1_500_000
