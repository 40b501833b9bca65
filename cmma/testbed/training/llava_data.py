"""Training batches of toy_llava, each a pure function of (seed, step).

Supervision is dense. For the vision tower every patch is labelled with the object in whose cell it lies. For the whole
model one image is followed by many *independent turns*: the caption and as many questions as fit. A turn sees the image
and itself but no other turn, and its positions start right after the image, so each is exactly the single-question
prompt of inference; packing them only saves the image's computation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cmma.testbed import language
from cmma.testbed.generate import question_rng
from cmma.testbed.render import render
from cmma.testbed.scenes import CANVAS, CELL, GRID, Scenes
from cmma.testbed.training.packed_attention import LAYOUT
from cmma.testbed.training.toy_llava import N_PATCHES, PATCH, PIXEL_MEAN, PIXEL_STD, build_tokenizer
from cmma.testbed.world import sample_scenes

FACTOR_LEVELS = {"presence": 2, "shape": 6, "color": 6, "size": 2, "texture": 3}
PLACE_LEVELS = {"cell": GRID**2}
IGNORE = -100
_TOKEN = re.compile(r"USER:|ASSISTANT:|\n|[A-Za-z]+|[^\sA-Za-z]")


def pixel_values(images_NYXC: np.ndarray) -> Tensor:
    """Images as the processor would give them: float32 [N, 3, 48, 48]."""
    scaled = torch.from_numpy(images_NYXC).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return (scaled - mean) / std


def patch_labels(scenes: Scenes) -> dict[str, Tensor]:
    """Per patch, the factors of the visible object in whose cell it lies, and the cell itself: int64 [N, 36].

    IGNORE where there is no object.
    """
    n, per_side, per_cell = len(scenes), CANVAS // PATCH, CELL // PATCH
    row, m = np.nonzero(scenes.present & scenes.visible)
    labels = {}
    for factor in (*FACTOR_LEVELS, *PLACE_LEVELS):
        cells = np.full((n, GRID**2), 0 if factor == "presence" else IGNORE)
        if factor == "cell":
            cells[:] = np.arange(GRID**2)
        else:
            cells[row, scenes.cell[row, m]] = 1 if factor == "presence" else getattr(scenes, factor)[row, m]
        grid = cells.reshape(n, 3, 3).repeat(per_cell, axis=1).repeat(per_cell, axis=2)
        labels[factor] = torch.from_numpy(grid.reshape(n, per_side**2).copy())
    return labels


class VisionBatches(Dataset):
    """Step → (pixel values [B, 3, 48, 48], patch labels) of the training split."""

    def __init__(self, batch: int, steps: int, seed: int) -> None:
        self.batch, self.steps, self.seed = batch, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = sample_scenes(self.batch, "train", self.seed, step * self.batch)
        return pixel_values(render(scenes)[0]), patch_labels(scenes)


KIND_WEIGHTS = {
    "existence": 2.0, "negation": 1.0, "logic": 2.0, "color": 1.0, "shape": 1.0, "size": 1.0, "texture": 1.0,
    "count": 2.0, "relation": 4.0,
}  # fmt: skip
"""How often each kind is asked: what is learned last, more often."""


@dataclass(frozen=True)
class TurnWeights:
    """Weight in the loss of one token of an answer, of a caption, and of the end mark."""

    answer: float = 1.0
    caption: float = 0.4
    end: float = 0.1


class TurnBatches(Dataset):
    """Step → one batch of images, each followed by packed, independent turns (`packed_attention.LAYOUT`).

    A batch holds input_ids [B, S], pixel_values [B, 3, 48, 48], targets int64 [B, S] (the next token where the loss
    counts it, else IGNORE) and weights float32 [B, S].
    """

    def __init__(self, batch: int, steps: int, seed: int, split: str = "train", weights: TurnWeights | None = None):
        self.batch, self.steps, self.seed, self.split = batch, steps, seed, split
        self.weights = weights or TurnWeights()
        tokenizer = build_tokenizer()
        self.vocabulary = tokenizer.get_vocab()
        self.end, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.prefix = [tokenizer.bos_token_id, *self.encode("USER:")]
        self.prefix += [self.vocabulary["<image>"]] * N_PATCHES + self.encode("\n")

    def __len__(self) -> int:
        return self.steps

    def encode(self, text: str) -> list[int]:
        """Token ids without the start token: the tokenizer's own rule, without its overhead."""
        return [self.vocabulary[word] for word in _TOKEN.findall(text)]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        start = step * self.batch
        scenes = sample_scenes(self.batch, self.split, self.seed, start)
        ids_BS = np.full((self.batch, LAYOUT.total), self.pad)
        ids_BS[:, : LAYOUT.prefix] = self.prefix
        target_BS = np.full((self.batch, LAYOUT.total), IGNORE)
        weight_BS = np.zeros((self.batch, LAYOUT.total), dtype=np.float32)
        for b in range(self.batch):
            scene, rng = scenes.scene(b), question_rng(self.seed, f"{self.split} turns", start + b)
            turns = [(LAYOUT.prefix, language.CAPTION_PROMPT, language.caption(scene), self.weights.caption)]
            asked = language.questions(scene, rng, LAYOUT.turns, KIND_WEIGHTS)
            for number, q in enumerate(asked):
                turns.append((LAYOUT.head + number * LAYOUT.short, q.question, q.answer, self.weights.answer))
            for at, question, answer, weight in turns:
                prompt, reply = self.encode(f"{question} ASSISTANT:"), [*self.encode(answer), self.end]
                first, stop = at + len(prompt) - 1, at + len(prompt) + len(reply) - 1
                ids_BS[b, at:stop] = [*prompt, *reply[:-1]]  # the end mark is predicted, never read
                target_BS[b, first:stop], weight_BS[b, first:stop] = reply, weight
                weight_BS[b, stop - 1] = self.weights.end
        return {
            "input_ids": torch.from_numpy(ids_BS),
            "pixel_values": pixel_values(render(scenes)[0]),
            "targets": torch.from_numpy(target_BS),
            "weights": torch.from_numpy(weight_BS),
        }
