"""Embedding, captioning and answering through the adapters, against the models' own libraries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg

from cmma.data.samples import Sample
from cmma.errors import CmmaError
from cmma.evaluation.captioning import answer_questions, caption_samples
from cmma.evaluation.clip_score import cosines
from cmma.evaluation.embeddings import embed
from cmma.models.clip import ClipModel
from cmma.models.llava import LlavaModel
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples
from cmma.testbed.training.toy_llava import build_config, build_model, build_processor


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(generate_samples("balanced", 0, 7, seed=1))


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    torch.manual_seed(0)
    tower = {"layers": 2, "width": 32, "head_width": 16}
    module = open_clip.CustomTextCLIP(
        embed_dim=24,
        vision_cfg=tower | {"image_size": 32, "patch_size": 16},
        text_cfg={"layers": 2, "width": 32, "heads": 2, "context_length": 77, "vocab_size": 49_408},
    )
    module.visual.preprocess_cfg = vars(PreprocessCfg(size=32))
    return ClipModel(ModelSpec(name="tiny_clip", family="clip"), module, open_clip.get_tokenizer("ViT-B-32"))


@pytest.fixture(scope="module")
def llava() -> LlavaModel:
    return LlavaModel(ModelSpec(name="tiny_llava"), build_model(0, build_config(n_layers=2)), build_processor())


def test_embeddings_are_open_clips_own_whatever_the_batch(clip, samples):
    found = embed(clip, samples, batch_size=3)
    images = torch.stack([clip.transform(sample.image) for sample in samples])
    tokens = clip.tokenizer([sample.caption for sample in samples])
    with torch.no_grad():
        image_ND, text_ND = clip.module.encode_image(images).numpy(), clip.module.encode_text(tokens).numpy()
    assert np.allclose(found.image_ND, image_ND, atol=1e-5)
    assert np.allclose(found.text_ND, text_ND, atol=1e-5)
    assert found.encoder == "tiny_clip"
    with torch.no_grad():
        similarity_NN = clip.similarity(clip.collate(samples)).numpy()
    assert np.allclose(cosines(found.image_ND, found.text_ND), np.diagonal(similarity_NN), atol=1e-5)


def test_other_texts_change_only_the_text_side(clip, samples):
    own, other = embed(clip, samples), embed(clip, samples, texts=["a dog"] * len(samples))
    assert np.array_equal(own.image_ND, other.image_ND)
    assert np.ptp(other.text_ND, axis=0).max() < 1e-5


def test_only_dual_encoders_embed(llava, samples):
    with pytest.raises(CmmaError, match="tiny_llava does not embed"):
        embed(llava, samples)


def alone(llava: LlavaModel, sample: Sample, text: str, max_new_tokens: int) -> str:
    """One unpadded prompt through transformers itself."""
    prompt = f"USER: <image>\n{text} ASSISTANT:"
    inputs = llava.processor(images=[sample.image], text=[prompt], return_tensors="pt")
    tokens = llava.module.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0)
    return llava.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def test_captions_are_those_of_each_sample_alone(llava, samples):
    captions = caption_samples(llava, samples, batch_size=3, max_new_tokens=6)
    assert captions == [alone(llava, sample, "describe the image.", 6) for sample in samples]
    assert len(set(captions)) > 1


def test_answers_are_those_of_each_question_alone(llava, samples):
    answered = answer_questions(llava, samples[:3], batch_size=5, max_new_tokens=2)
    asked = [(sample, question) for sample in samples[:3] for question in sample.questions]
    assert [(each.image, each.question) for each in answered] == [(sample.key, question) for sample, question in asked]
    for each, (sample, question) in zip(answered, asked, strict=True):
        assert each.prediction == alone(llava, sample, question.question, 2)


def test_few_questions_cover_many_images(llava, samples):
    answered = answer_questions(llava, samples, max_new_tokens=1, max_questions=9)
    assert len(answered) == 9
    assert {each.image for each in answered} == {sample.key for sample in samples}
    silent = [replace(sample, meta={}) for sample in samples]
    assert answer_questions(llava, silent) == []
