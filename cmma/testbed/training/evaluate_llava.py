"""What toy_llava can do, measured through plain transformers on the stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from cmma.data.samples import Sample
from cmma.testbed.captions import parse_caption
from cmma.testbed.generate import generate_samples
from cmma.testbed.language import CAPTION_PROMPT, KINDS
from cmma.testbed.training.bootstrap import Estimate, image_ratio
from cmma.testbed.training.job import EVALUATION_SEED
from cmma.testbed.training.toy_llava import PROMPT
from cmma.testbed.world import PARTNER

_BATCH = 100


@torch.inference_mode()
def generate_texts(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, images: Sequence[Any], prompts: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """Greedy continuations of the single-turn prompt, decoded without special tokens."""
    texts: list[str] = []
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        filled = [PROMPT.format(question=prompt) for prompt in prompts[rows]]
        batch = processor(images=list(images[rows]), text=filled, return_tensors="pt", padding=True)
        output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        texts += processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def question_accuracy(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: Sequence[Sample]
) -> dict[str, Estimate]:
    """Exact-match accuracy over all questions of the samples, in all and by kind."""
    asked = [(i, q) for i, sample in enumerate(samples) for q in sample.questions]
    answers = generate_texts(
        model, processor, [samples[i].image for i, _ in asked], [q.question for _, q in asked], max_new_tokens=4
    )
    return accuracy_by_kind(samples, answers)


def accuracy_by_kind(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Estimate]:
    """Share of exact matches, in all and by kind; `answers` are to all questions of the samples in their order."""
    asked = [(i, q) for i, sample in enumerate(samples) for q in sample.questions]
    right = np.array([answer.strip() == q.answer for answer, (_, q) in zip(answers, asked, strict=True)])
    image = np.array([i for i, _ in asked])
    kind = np.array([q.kind for _, q in asked])
    chosen = {"all": np.ones(len(asked), dtype=bool)} | {name: kind == name for name in KINDS}
    return {
        name: image_ratio(
            np.bincount(image[rows], right[rows], len(samples)), np.bincount(image[rows], minlength=len(samples))
        )
        for name, rows in chosen.items()
    }


def caption_metrics(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: Sequence[Sample]
) -> dict[str, Estimate]:
    """Hallucination and exactness of generated captions.

    CHAIR_i is hallucinated mentions over mentions, CHAIR_s captions with a hallucination over captions (Rohrbach et al.
    2018), at two levels: `shape` (the category word) and `object` (colour and shape, which is unique in a scene).
    Truth is what is visible.
    """
    captions = generate_texts(
        model, processor, [s.image for s in samples], [CAPTION_PROMPT] * len(samples), max_new_tokens=64
    )
    mentions = [parse_caption(text) for text in captions]
    truth = [[o for o in sample.objects if o["visible"]] for sample in samples]
    n_mentions, ones = np.array([len(m) for m in mentions]), np.ones(len(samples))
    wrong_shape = [
        sum(m.shape not in {o["shape"] for o in t} for m in ms) for ms, t in zip(mentions, truth, strict=True)
    ]
    wrong_name = [
        sum((m.color, m.shape) not in {(o["color"], o["shape"]) for o in t} for m in ms)
        for ms, t in zip(mentions, truth, strict=True)
    ]
    named = [{(m.color, m.shape) for m in ms} for ms in mentions]
    recalled = [sum((o["color"], o["shape"]) in n for o in t) for n, t in zip(named, truth, strict=True)]
    partner = [
        PARTNER in n and PARTNER not in {(o["color"], o["shape"]) for o in t} for n, t in zip(named, truth, strict=True)
    ]
    exact = [text.strip() == sample.caption for text, sample in zip(captions, samples, strict=True)]
    return {
        "chair_i_shape": image_ratio(np.array(wrong_shape), n_mentions),
        "chair_s_shape": image_ratio(np.array(wrong_shape) > 0, ones),
        "chair_i_object": image_ratio(np.array(wrong_name), n_mentions),
        "chair_s_object": image_ratio(np.array(wrong_name) > 0, ones),
        "partner_hallucinated": image_ratio(np.array(partner), ones),
        "object_recall": image_ratio(np.array(recalled), np.array([len(t) for t in truth])),
        "exact_caption": image_ratio(np.array(exact), ones),
    }


def measure(folder: Path, quick: bool) -> dict[str, dict[str, Estimate]]:
    """All metrics of a stored toy_llava: 500 images of each split, 50 when `quick`."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    n_images = 50 if quick else 500
    balanced = list(generate_samples("balanced", 0, n_images, EVALUATION_SEED))
    counter = list(generate_samples("counter", 0, n_images, EVALUATION_SEED))
    return {
        "questions_balanced": question_accuracy(model, processor, balanced),
        "captions_balanced": caption_metrics(model, processor, balanced),
        "captions_counter": caption_metrics(model, processor, counter),
    }
