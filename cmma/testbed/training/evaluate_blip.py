"""What toy_blip can do, measured through plain transformers on the stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BlipForQuestionAnswering, BlipProcessor

from cmma.testbed.generate import generate_samples
from cmma.testbed.training.bootstrap import Estimate
from cmma.testbed.training.evaluate_llava import accuracy_by_kind
from cmma.testbed.training.job import EVALUATION_SEED

_BATCH = 200


@torch.inference_mode()
def generate_answers(
    model: BlipForQuestionAnswering, processor: BlipProcessor, images: Sequence[Any], questions: Sequence[str]
) -> list[str]:
    """Greedy answers, decoded without special tokens.

    Only questions of equal length share a batch: transformers' cross-attention would see the padding of a shorter one.
    """
    lengths = [len(ids) for ids in processor.tokenizer(list(questions))["input_ids"]]
    answers = [""] * len(questions)
    for length in set(lengths):
        alike = [i for i in range(len(questions)) if lengths[i] == length]
        for start in range(0, len(alike), _BATCH):
            rows = alike[start : start + _BATCH]
            batch = processor(images=[images[i] for i in rows], text=[questions[i] for i in rows], return_tensors="pt")
            texts = processor.batch_decode(model.generate(**batch, max_new_tokens=4), skip_special_tokens=True)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text
    return answers


def measure(folder: Path, quick: bool) -> dict[str, dict[str, Estimate]]:
    """Question accuracy of a stored toy_blip on 500 balanced images, 50 when `quick`."""
    model = BlipForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(folder)
    samples = list(generate_samples("balanced", 0, 50 if quick else 500, EVALUATION_SEED))
    asked = [(sample.image, q.question) for sample in samples for q in sample.questions]
    answers = generate_answers(model, processor, *zip(*asked, strict=True))
    return {"questions_balanced": accuracy_by_kind(samples, answers)}
