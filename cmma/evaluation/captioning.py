"""What a generative model says about images: captions and answers, in batches.

Plain functions over a list: ranks of a parallel run take disjoint parts of the samples and put the texts together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter

import torch

from cmma.console import progress
from cmma.data.samples import Question, Sample
from cmma.evaluation.questions import Answered
from cmma.models.base import MultimodalModel


def caption_samples(
    model: MultimodalModel, samples: Sequence[Sample], batch_size: int = 32, max_new_tokens: int = 96
) -> list[str]:
    """A caption of each sample, asked for with the model's own instruction (`model.spec.prompt`), greedily."""
    return generate(model, samples, None, batch_size, max_new_tokens, "Captioning")


def answer_questions(
    model: MultimodalModel,
    samples: Sequence[Sample],
    batch_size: int = 32,
    max_new_tokens: int = 8,
    max_questions: int | None = None,
) -> list[Answered]:
    """The model's answer to every question that comes with the samples, in their order.

    Args:
        max_questions: stop after so many questions, as `some_questions` does.
    """
    asked = some_questions(samples, max_questions)
    said = generate(
        model, [sample for sample, _ in asked], [question.question for _, question in asked], batch_size,
        max_new_tokens, "Answering questions",
    )  # fmt: skip
    return [Answered(sample.key, question, text) for (sample, question), text in zip(asked, said, strict=True)]


def some_questions(samples: Sequence[Sample], n: int | None = None) -> list[tuple[Sample, Question]]:
    """The first `n` questions of the samples, all with None, in their order.

    They are taken round by round (the first of every sample, then the second, …), so that few questions still cover
    many images.
    """
    questions = [sample.questions for sample in samples]
    rounds = sorted((turn, index) for index, some in enumerate(questions) for turn in range(len(some)))
    return [(samples[index], questions[index][turn]) for turn, index in sorted(rounds[:n], key=itemgetter(1))]


def generate(
    model: MultimodalModel,
    samples: Sequence[Sample],
    texts: Sequence[str] | None,
    batch_size: int,
    max_new_tokens: int,
    label: str,
    under: Callable[[Sequence[Sample]], AbstractContextManager[object]] | None = None,
) -> list[str]:
    """Greedy texts in answer to `texts`, one per sample; None asks for captions.

    Args:
        label: what the progress bar says.
        under: makes the context (such as edits of activations) in which a batch of samples is generated.
    """
    said: list[str] = []
    with torch.inference_mode(), progress(label, total=len(samples)) as bar:
        for start in range(0, len(samples), batch_size):
            chunk = slice(start, start + batch_size)
            batch = model.collate(samples[chunk], texts=None if texts is None else texts[chunk], padding="left")
            with under(samples[chunk]) if under else nullcontext():
                said += model.generate(batch, max_new_tokens)
            bar.advance(len(samples[chunk]))
    return said
