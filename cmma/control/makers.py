"""What a model makes of each trial's sample, with and without an edit: images in the diffusion loop, or captions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cmma.control.config import ControlConfig
from cmma.control.edits import Contrasts, Setting, Slots
from cmma.control.scoring import Facts, facts_of_caption, facts_of_image
from cmma.control.trials import ROLES, Trial, token_span, words_of
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.hooks import Edit, TokenEdit
from cmma.hooks.prompts import reading
from cmma.hooks.streams import on_block
from cmma.modality import Modality
from cmma.models.base import MultimodalModel
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.testbed.parser import parse_images
from cmma.testbed.render import render
from cmma.testbed.scenes import GRID, scenes_of


@dataclass(frozen=True)
class Made:
    """What was made of one sample: an image or a text, and what a parser reads in it."""

    facts: Facts
    image: Image.Image | None = None
    text: str = ""


class Maker(ABC):
    """A model that makes something of a scene.

    Attributes:
        tokens: kinds of records that can be edited.
        timed: those that are passed once per denoising step.
        in_steps: whether results are made in denoising steps.
    """

    tokens: tuple[str, ...]
    timed: tuple[str, ...] = ()
    in_steps: bool = False

    def __init__(
        self, model: Any, sae: SparseAutoencoder, layer: int, config: ControlConfig
    ) -> None:
        self.model, self.sae, self.layer, self.config = model, sae, layer, config

    @abstractmethod
    def make(
        self, samples: Sequence[Sample], edit: TokenEdit | None = None, setting: Setting | None = None
    ) -> list[Made]:
        """One result per sample; at most a batch at a time where an edit is given."""

    @abstractmethod
    def changed(self, trials: Sequence[Trial]) -> list[Made]:
        """The ceiling: what the model makes when its input says what the trial wants."""

    @abstractmethod
    def slots(self, samples: Sequence[Sample], before: Sequence[Made], tokens: str) -> Slots:
        """Which tokens are about which object."""

    def n_passes(self, tokens: str) -> int:
        """How often the tokens are passed in one generation."""
        return self.config.steps if tokens in self.timed else 1

    def contrasts(self, samples: Sequence[Sample], before: Sequence[Made], tokens: str) -> Contrasts:
        """Mean activations on the tokens of the samples' objects, while the samples are made once more."""
        found = Contrasts.empty(self._n_roles(tokens), self.n_passes(tokens), self.sae.n_latents)
        for rows in chunks(len(samples), self.config.batch_size):
            slots = self.slots(samples[rows], before[rows], tokens)
            note = found.recording(self.sae, slots, [sample.objects for sample in samples[rows]])
            self.make(samples[rows], note, Setting(tokens, 1, 1.0))
        return found

    def _n_roles(self, tokens: str) -> int:
        return len(ROLES) if tokens == "textual" else math.ceil(self._side() / GRID) ** 2

    def _side(self) -> int:
        """Tokens along one side of the image."""
        return self.model.image_grid({}, self.layer)[0]

    def _cells(self, cells: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Object and role of each of the image's tokens, int64[B, side²] each, from the cells of each row's objects."""
        side = self._side()
        width = math.ceil(side / GRID)
        along = torch.arange(side)
        cell_X = along * GRID // side  # of a row, and of a column
        within_X = along - (cell_X * side + GRID - 1) // GRID
        cell_P = (cell_X[:, None] * GRID + cell_X).flatten()
        thing_BP = torch.full((len(cells), side * side), -1)
        for row, some in enumerate(cells):
            for thing, cell in enumerate(some):
                thing_BP[row, cell_P == cell] = thing
        return thing_BP, (within_X[:, None] * width + within_X).flatten().expand(len(cells), -1)

    def _under(self, edit: TokenEdit, modality: Modality | None) -> AbstractContextManager[Any]:
        (place,) = (p for p in self.model.record_sites(self.layer) if p.modality in (None, modality))
        return Edit(self.model, place.site, on_block(edit, place, self.model.record_width(self.layer)))


class ImageMaker(Maker):
    """Images from captions, in the diffusion loop with guidance; edits act on the prompt's side only.

    Textual edits act in the text encoder: the U-Net reads the edited prompt from the setting's start on. Visual ones
    act at the U-Net's block in each step, on the tokens where the object was in the unedited image.
    """

    tokens = ("textual", "visual")
    timed = ("visual",)
    in_steps = True

    def make(
        self, samples: Sequence[Sample], edit: TokenEdit | None = None, setting: Setting | None = None
    ) -> list[Made]:
        prompts = [sample.caption for sample in samples]
        seeds = [Trial(sample, "", (), "").noise_seed for sample in samples]
        if edit is None or setting is None:
            return self._images(prompts, seeds)
        if setting.tokens == "textual":
            with self._under(edit, Modality.TEXTUAL):
                edited = self.model.encode_prompts(prompts)
            with reading(self.model, edited, first_step=setting.first_pass(self.config.steps)):
                return self._images(prompts, seeds)
        tokens: Any = edit.tokens
        prompt_only = replace(edit, tokens=torch.cat([torch.zeros_like(tokens), tokens]))
        with self._under(prompt_only, Modality.VISUAL):
            return self._images(prompts, seeds)

    def changed(self, trials: Sequence[Trial]) -> list[Made]:
        return self._images([trial.changed_prompt() for trial in trials], [trial.noise_seed for trial in trials])

    def slots(self, samples: Sequence[Sample], before: Sequence[Made], tokens: str) -> Slots:
        if tokens == "visual":
            cells = [_cells_of(sample, made.facts) for sample, made in zip(samples, before, strict=True)]
            return Slots(*self._cells(cells), self._n_roles(tokens))
        length = self.model.tokenizer.model_max_length
        thing_BS = torch.full((len(samples), length), -1)
        role_BS = torch.full_like(thing_BS, -1)
        for row, sample in enumerate(samples):
            for word in words_of(sample.caption, sample.objects):
                span = token_span(self.model.tokenizer, sample.caption, word)
                span = slice(span.start, min(span.stop, length - 1))  # a prompt that is too long is cut at its end mark
                thing_BS[row, span] = word.thing
                role_BS[row, span] = ROLES.index(word.role)
        return Slots(thing_BS, role_BS, len(ROLES))

    def _images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Made]:
        images: list[Image.Image] = []
        for rows in chunks(len(prompts), self.config.batch_size):
            images += self.model.generate_images(prompts[rows], seeds[rows], self.config.steps, self.config.guidance)
        return [Made(facts_of_image(scene), image) for scene, image in zip(parse_images(images), images, strict=True)]


class CaptionMaker(Maker):
    """Captions of images; edits act on the image's tokens where the object is, while the prompt is read."""

    tokens = ("visual",)

    def make(
        self, samples: Sequence[Sample], edit: TokenEdit | None = None, setting: Setting | None = None
    ) -> list[Made]:
        texts: list[str] = []
        for rows in chunks(len(samples), self.config.batch_size):
            batch = self.model.collate(samples[rows], padding="left")
            with nullcontext() if edit is None else self._under(edit, None):
                texts += self.model.generate(batch, self.config.max_new_tokens)
        return [Made(facts_of_caption(text), text=text) for text in texts]

    def changed(self, trials: Sequence[Trial]) -> list[Made]:
        images, _ = render(scenes_of([trial.changed_objects() for trial in trials], [t.noise_seed for t in trials]))
        return self.make([
            replace(trial.sample, image=Image.fromarray(image)) for trial, image in zip(trials, images, strict=True)
        ])  # fmt: skip

    def slots(self, samples: Sequence[Sample], before: Sequence[Made], tokens: str) -> Slots:
        batch = self.model.collate(samples, padding="left")
        position_BP = self.model.image_positions(batch, self.layer).cpu()
        thing_BP, role_BP = self._cells([[thing["cell"] for thing in sample.objects] for sample in samples])
        thing_BS = torch.full(batch["input_ids"].shape, -1).scatter(1, position_BP, thing_BP)
        return Slots(thing_BS, torch.full_like(thing_BS, -1).scatter(1, position_BP, role_BP), self._n_roles(tokens))


def make_maker(model: MultimodalModel, sae: SparseAutoencoder, layer: int, config: ControlConfig) -> Maker:
    """The maker for a model. Raises ConfigError for one that makes neither images nor captions."""
    if model.kind == "diffusion":
        return ImageMaker(model, sae, layer, config)
    if model.captions:
        return CaptionMaker(model, sae, layer, config)
    raise ConfigError(f"{model.spec.name} makes neither images nor captions to control; take toy_sd or toy_llava")


def chunks(n: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover n."""
    return [slice(start, start + size) for start in range(0, n, size)]


def _cells_of(sample: Sample, facts: Facts) -> list[int]:
    """The cell of each of the sample's objects in an image that shows them all; names are unique in a scene."""
    by_name = {(thing["color"], thing["shape"]): thing["cell"] for thing in facts.objects}
    return [by_name[thing["color"], thing["shape"]] for thing in sample.objects]
