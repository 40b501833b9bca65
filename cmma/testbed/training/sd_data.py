"""Prompts and training batches of toy_sd, each a pure function of (seed, step).

A prompt describes what is visible: every object in reading order, mostly in full, sometimes with fewer attributes, and
up to two true relations in the words of the captions.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cmma.testbed import draws, language
from cmma.testbed.generate import question_rng
from cmma.testbed.render import render
from cmma.testbed.scenes import CELL, COLORS, GRID, MAX_OBJECTS, SHAPES, SIZES, TEXTURES, Scene, SceneObject, Scenes
from cmma.testbed.training.llava_data import IGNORE, patch_labels
from cmma.testbed.training.toy_sd import CONTEXT, LATENT_SIDE, build_tokenizer
from cmma.testbed.world import sample_scenes

EMPTY_SHARE = 0.1  # prompts left empty, for classifier-free guidance
CAPTION_SHARE = 0.5  # prompts that are the scene's caption; of the rest, each attribute is left out at these rates
LEFT_OUT = {"size": 0.5, "texture": 0.5, "color": 0.1}
_WORDS = {"shape": SHAPES, "color": COLORS, "size": SIZES, "texture": TEXTURES}
_TOKEN = re.compile(r"[a-z]+|[^\sa-z]")


def pixels(images_NYXC: np.ndarray) -> Tensor:
    """Images as the autoencoder takes them: float32 [N, 3, 48, 48] in [−1, 1]."""
    return torch.from_numpy(images_NYXC).permute(0, 3, 1, 2).float() / 127.5 - 1


def visible(scene: Scene) -> Scene:
    """The objects that can be seen."""
    return tuple(thing for thing in scene if thing.visible)


def training_prompt(scene: Scene, rng: random.Random) -> str:
    """A true description of the scene: its caption, or a looser one with fewer attributes and other relations."""
    if rng.random() < CAPTION_SHARE:
        return language.caption(scene)
    kept = [name for name in ("size", "texture", "color") if rng.random() >= LEFT_OUT[name]]
    phrases = [" ".join(["a", *(getattr(thing, name) for name in kept), thing.shape]) for thing in scene]
    sentences = [", ".join(phrases) + "."]
    holding = language.relations(scene)
    for i, relation, j in rng.sample(holding, min(len(holding), rng.choice((0, 0, 1, 2)))):
        sentences.append(f"the {scene[i].name} is {relation} the {scene[j].name}.")
    return " ".join(sentences)


class Prompts:
    """Prompts as token ids [N, 48]; the same ids as the pipeline's tokenizer, by a look-up of words."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer()
        self.ids = {word: int(tokenizer(word)["input_ids"][1]) for word in language.WORDS}
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id

    def __call__(self, texts: list[str]) -> Tensor:
        rows = torch.full((len(texts), CONTEXT), self.end)
        rows[:, 0] = self.start
        for row, text in zip(rows, texts, strict=True):
            words = [self.ids[word] for word in _TOKEN.findall(text)][: CONTEXT - 2]
            row[1 : 1 + len(words)] = torch.tensor(words)
        return rows


def _generator(seed: int, purpose: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.default_rng((seed, purpose, step)).integers(2**62)))


class ImageBatches(Dataset):
    """Step → (pixels [B, 3, 48, 48], noise [B, C, 6, 6] for the posterior).

    The scenes have up to nine objects, which teach the autoencoder more per image.
    """

    def __init__(self, batch: int, steps: int, seed: int, channels: int) -> None:
        self.batch, self.steps, self.seed, self.channels = batch, steps, seed, channels

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        shape = (self.batch, self.channels, LATENT_SIDE, LATENT_SIDE)
        noise = torch.randn(shape, generator=_generator(self.seed, 0, step))
        return pixels(dense_images(self.batch, self.seed, step * self.batch)), noise


def dense_images(n: int, seed: int, start: int) -> np.ndarray:
    """Three scenes of up to three objects each, in disjoint cells of one background: uint8 [N, 48, 48, 3]."""
    layers = GRID * GRID // 3
    scenes = sample_scenes(n * layers, "balanced", seed, start * layers)
    keys_N = scenes.keys[::layers]
    order_NG = np.argsort(draws.uniforms(keys_N, purpose=20, count=GRID * GRID), axis=1)
    cell = np.zeros((n * layers, MAX_OBJECTS), dtype=int)
    cell[:, :3] = order_NG.reshape(n * layers, 3)
    merged = replace(scenes, cell=cell, keys=np.repeat(keys_N, layers), count=np.minimum(scenes.count, 3))
    images, _ = render(merged)
    shape = (n, layers, GRID, CELL, GRID, CELL, 3)
    cells = images.reshape(shape).transpose(0, 1, 2, 4, 3, 5, 6).reshape(n, layers, GRID * GRID, CELL, CELL, 3)
    owner_NG = np.argsort(order_NG, axis=1) // 3  # which of the three scenes has a cell
    chosen = np.take_along_axis(cells, owner_NG[:, None, :, None, None, None], axis=1)[:, 0]
    return chosen.reshape(n, GRID, GRID, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, *images.shape[1:])


class TextBatches(Dataset):
    """Step → (token ids [B, 48], labels): what the text encoder should know at a noun and at the end of a prompt.

    Labels are int64 [B, 48] per factor (shape, color, size, texture, cell) at every object word, and [B, 4] cells of
    the objects in order for the end mark; IGNORE elsewhere and where the prompt does not say.
    """

    def __init__(self, batch: int, steps: int, seed: int) -> None:
        self.batch, self.steps, self.seed, self.prompts = batch, steps, seed, Prompts()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        start = step * self.batch
        scenes = sample_scenes(self.batch, "train", self.seed, start)
        seen = [visible(scenes.scene(b)) for b in range(self.batch)]
        texts = [
            training_prompt(scene, question_rng(self.seed, "text prompts", start + b)) for b, scene in enumerate(seen)
        ]
        labels = {name: torch.full((self.batch, CONTEXT), IGNORE) for name in (*_WORDS, "cell")}
        cells = torch.full((self.batch, MAX_OBJECTS), IGNORE)
        for b, (scene, text) in enumerate(zip(seen, texts, strict=True)):
            cells[b, : len(scene)] = torch.tensor([thing.cell for thing in scene])
            for position, thing, said in _nouns(scene, text):
                for name in said:
                    labels[name][b, position] = _WORDS[name].index(getattr(thing, name))
                labels["cell"][b, position] = thing.cell
        return self.prompts(texts), {**labels, "end": cells}


def _nouns(scene: Scene, text: str) -> list[tuple[int, SceneObject, set[str]]]:
    """(token position, object, attributes said of it) of every object word; a later mention is by colour and shape."""
    words = _TOKEN.findall(text)
    found: list[tuple[int, SceneObject, set[str]]] = []
    said_of: dict[int, set[str]] = {}
    for i, word in enumerate(words):
        if word not in SHAPES:
            continue
        if len(said_of) < len(scene):
            index = len(said_of)
            phrase = words[len(words) - words[::-1].index("a", len(words) - i) : i]
            said_of[index] = {name for name, of in _WORDS.items() if any(w in of for w in (*phrase, word))}
            found.append((i + 1, scene[index], said_of[index]))
        else:
            index = [thing.name for thing in scene].index(f"{words[i - 1]} {word}")
            found.append((i + 1, scene[index], said_of[index] | {"color"}))
    return found


class Step(NamedTuple):
    """One step of diffusion training.

    Attributes:
        row: int64 [B], scenes of the cached set. ids: int64 [B, 48]. t: int64 [B]. noise: float32 [B, C, 6, 6].
        labels: factor → int64 [B, 36], what lies at each latent position.
    """

    row: Tensor
    ids: Tensor
    t: Tensor
    noise: Tensor
    labels: dict[str, Tensor]


class DiffusionBatches(Dataset):
    """Step → `Step` over a fixed set of scenes of the training split, in another order and other words each epoch."""

    def __init__(self, batch: int, steps: int, seed: int, n_scenes: int, channels: int, n_timesteps: int) -> None:
        self.batch, self.steps, self.seed, self.n_scenes = batch, steps, seed, n_scenes
        self.channels, self.n_timesteps = channels, n_timesteps
        self.prompts = Prompts()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Step:
        per_epoch = self.n_scenes // self.batch
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n_scenes)
        rows = np.sort(order[place * self.batch : (place + 1) * self.batch])
        scenes = self._scenes(rows)
        texts = []
        for b in range(len(rows)):
            rng = question_rng(self.seed, "prompts", step * self.batch + b)
            texts.append("" if rng.random() < EMPTY_SHARE else training_prompt(visible(scenes.scene(b)), rng))
        generator = _generator(self.seed, 1, step)
        t = torch.randint(self.n_timesteps, (self.batch,), generator=generator)
        noise = torch.randn(self.batch, self.channels, LATENT_SIDE, LATENT_SIDE, generator=generator)
        return Step(torch.from_numpy(rows), self.prompts(texts), t, noise, patch_labels(scenes))

    def _scenes(self, rows: np.ndarray) -> Scenes:
        if not hasattr(self, "_all"):
            self._all = sample_scenes(self.n_scenes, "train", self.seed)
        return self._all.take(rows)
