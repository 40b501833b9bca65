"""Training of toy_blip: patch labels for the vision tower first, then many questions about each image.

The questions of an image share its computation: in the question encoder only cross-attention sees the image, and it has
no mask, so all question tokens of an image query it as one sequence; self-attention keeps the questions apart. Each
question is thus encoded exactly as it is alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import BlipForQuestionAnswering

from cmma.testbed import language
from cmma.testbed.generate import question_rng
from cmma.testbed.render import render
from cmma.testbed.training.evaluate_blip import measure
from cmma.testbed.training.job import Job
from cmma.testbed.training.llava_data import IGNORE, KIND_WEIGHTS, pixel_values
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.toy_blip import build_model, build_tokenizer, save_folder
from cmma.testbed.training.vision import pretrain_vision
from cmma.testbed.world import sample_scenes

QUESTIONS = 12
WEIGHTS = KIND_WEIGHTS | {"relation": 8.0}
"""How often each kind is asked: all but relations are learned within the first thousand steps."""
QUESTION_LENGTH, ANSWER_LENGTH = 12, 3
"""Longest question with its two marks, and longest answer with one, of the grammar."""
END_WEIGHT = 0.1
_TOKEN = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")


class QuestionBatches(Dataset):
    """Step → B images of the training split with Q questions each, a pure function of (seed, step).

    A batch holds pixel_values [B, 3, 48, 48]; question_ids int64 [B, Q, T], padded; answer_ids int64 [B, Q, A], what
    the decoder reads; targets int64 [B, Q, A], the next token where the loss counts it, else IGNORE.
    """

    def __init__(self, batch: int, steps: int, seed: int, split: str = "train") -> None:
        self.batch, self.steps, self.seed, self.split = batch, steps, seed, split
        tokenizer = build_tokenizer()
        self.vocabulary = tokenizer.get_vocab()
        self.start, self.end, self.pad = tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        self.first = tokenizer.cls_token_id

    def __len__(self) -> int:
        return self.steps

    def encode(self, text: str) -> list[int]:
        """Token ids without marks: the tokenizer's own rule, without its overhead."""
        return [self.vocabulary[word] for word in _TOKEN.findall(text)]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        begin = step * self.batch
        scenes = sample_scenes(self.batch, self.split, self.seed, begin)
        questions_BQT = np.full((self.batch, QUESTIONS, QUESTION_LENGTH), self.pad)
        answers_BQA = np.full((self.batch, QUESTIONS, ANSWER_LENGTH), self.pad)
        targets_BQA = np.full((self.batch, QUESTIONS, ANSWER_LENGTH), IGNORE)
        for b in range(self.batch):
            rng = question_rng(self.seed, f"{self.split} questions", begin + b)
            asked = language.questions(scenes.scene(b), rng, QUESTIONS, WEIGHTS)
            for number, q in enumerate(asked):
                question, answer = [self.first, *self.encode(q.question), self.end], self.encode(q.answer)
                questions_BQT[b, number, : len(question)] = question
                answers_BQA[b, number, : len(answer) + 1] = [self.start, *answer]
                targets_BQA[b, number, : len(answer) + 1] = [*answer, self.end]
        return {
            "pixel_values": pixel_values(render(scenes)[0]),
            "question_ids": torch.from_numpy(questions_BQT),
            "answer_ids": torch.from_numpy(answers_BQA),
            "targets": torch.from_numpy(targets_BQA),
        }


def answer_logits(
    model: BlipForQuestionAnswering, pixel_values: Tensor, question_ids: Tensor, answer_ids: Tensor
) -> Tensor:
    """Logits after every answer token: Float[B, Q, A, V], those of each question asked alone."""
    images, questions, length = question_ids.shape
    image_BPD = model.vision_model(pixel_values=pixel_values).last_hidden_state
    ids_NT = question_ids.flatten(0, 1)
    text: Any = model.text_encoder
    hidden_NTD = text.embeddings(input_ids=ids_NT)
    hidden = torch.finfo(torch.float32).min  # added to the scores of what must not be seen
    padding_N11T = torch.where(ids_NT == model.decoder_pad_token_id, hidden, 0.0)[:, None, None]
    for layer in text.encoder.layer:
        hidden_NTD, _ = layer.attention(hidden_NTD, attention_mask=padding_N11T)
        packed_BSD = hidden_NTD.view(images, questions * length, -1)
        packed_BSD, _ = layer.crossattention(packed_BSD, encoder_hidden_states=image_BPD)
        hidden_NTD = layer.feed_forward_chunk(packed_BSD).view(images * questions, length, -1)

    decoder: Any = model.text_decoder
    answer_NAD = decoder.bert.embeddings(input_ids=answer_ids.flatten(0, 1))
    span = answer_ids.shape[-1]
    future_AA = torch.full((span, span), hidden, device=answer_NAD.device).triu(1)
    for layer in decoder.bert.encoder.layer:
        answer_NAD, _ = layer.attention(answer_NAD, attention_mask=future_AA)
        # The layer itself drops the mask of the questions' padding, which no single question needs.
        seen_NAD, _ = layer.crossattention.self(
            answer_NAD, encoder_hidden_states=hidden_NTD, encoder_attention_mask=padding_N11T
        )
        answer_NAD = layer.feed_forward_chunk(layer.crossattention.output(seen_NAD, answer_NAD))
    return decoder.cls(answer_NAD).unflatten(0, (images, questions))


def train_questions(
    model: BlipForQuestionAnswering, recipe: Recipe, seed: int, checkpoint: Path, preview: Callable[[], None]
) -> float:
    """Train `model` in place on questions about the training split; returns minutes."""
    model.train()
    sizes: Any = model.config.text_config

    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        targets_BQA = batch["targets"]
        counted = targets_BQA != IGNORE
        with torch.autocast(targets_BQA.device.type, torch.bfloat16):
            logits_BQAV = answer_logits(model, batch["pixel_values"], batch["question_ids"], batch["answer_ids"])
        logits_NV, target_N = logits_BQAV[counted].float(), targets_BQA[counted]
        is_end_N = target_N == sizes.sep_token_id
        weight_N = torch.where(is_end_N, END_WEIGHT, 1.0)
        loss_N = F.cross_entropy(logits_NV, target_N, reduction="none")
        right_N = logits_NV.argmax(-1) == target_N
        return (loss_N * weight_N).sum() / weight_N.sum(), {"right": right_N[~is_end_N].float().mean().item()}

    minutes = train(model, recipe, QuestionBatches(recipe.batch, recipe.steps, seed), loss, checkpoint, preview)
    model.eval()
    return minutes


def blip_job(vision: Recipe, questions: Recipe) -> Job:
    """toy_blip with these recipes."""

    def train_both(
        model: BlipForQuestionAnswering, out: Path, seed: int, preview: Callable[[], None]
    ) -> dict[str, float]:
        return {
            "vision": pretrain_vision(model.vision_model, vision, seed, out / "vision.safetensors", places=True),
            "questions": train_questions(model, questions, seed, out / "questions.safetensors", preview),
        }

    return Job(
        name="toy_blip", build=build_model, stages={"vision": vision, "questions": questions}, train=train_both,
        store=save_folder, measure=measure, notes={"question_kinds": WEIGHTS, "questions_per_image": QUESTIONS},
    )  # fmt: skip


TOY_BLIP = blip_job(
    vision=Recipe(steps=300, batch=128, lr=2e-3),
    questions=Recipe(steps=2200, batch=32, lr=2e-3, slow=0.3, slow_prefix="vision_model", warmup=150),
)
