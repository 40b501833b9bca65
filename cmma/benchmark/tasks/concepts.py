"""Task `concepts`: does some latent of a dictionary light up on the objects that a word names, and only there?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cmma.activations.capture import texts_of
from cmma.benchmark.config import BenchmarkConfig
from cmma.benchmark.protocols import Budget, Dictionary, DictionaryMethod
from cmma.benchmark.task import Metric, Task
from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.features.concepts import auroc, halves
from cmma.features.masks import cell_coverage, concept_mask
from cmma.hooks.trace import Trace
from cmma.modality import Modality
from cmma.models import load_model
from cmma.models.base import Batch, Records
from cmma.models.spec import ModelSpec
from cmma.sae.records import TensorReader
from cmma.testbed.generate import generate_samples
from cmma.testbed.scenes import CANVAS, COLORS, SHAPES, SIZES, TEXTURES

CONCEPTS = (*SHAPES, *COLORS, *SIZES, *TEXTURES)
_EVALUATION = 1000  # seed of the scenes: the models were trained on seed 0
_L0 = 16.0  # active latents per record, for every method
_THRESHOLDS = np.linspace(0.0, 0.9, 10)  # as shares of a latent's largest activation on the selection half
_BATCH = 32


@dataclass(frozen=True, eq=False)
class ConceptWorld:
    """Activations of one seed's images.

    Attributes:
        reader, budget: what methods get.
        patches_NPW: records of the test images' patches.
        coverage_NPC: pixels of each concept's objects in each patch.
        area: pixels of a patch.
    """

    reader: TensorReader
    budget: Budget
    patches_NPW: Tensor
    coverage_NPC: np.ndarray
    area: float


class ConceptsTask(Task):
    """See `docs/testbed_tasks.md`."""

    protocol = "dictionary"
    title = "Concepts: latents of image patches against exact object masks"
    default_methods = ("msae", "standard", "topk", "pca")
    controls = ("untrained", "frozen_decoder")
    uses_model = True
    metrics: ClassVar = {
        "iou": Metric("pixel IoU of a concept's best latent with the masks of its objects, mean over concepts"),
        "auroc": Metric("AUROC of a concept's best latent for 'the image has it', mean over concepts"),
        "found": Metric("concepts whose best latent reaches an IoU of 0.5"),
        "l0": Metric("active latents per patch", better="", needs_truth=False, digits=1),
    }

    def __init__(self, config: BenchmarkConfig, model: ModelSpec) -> None:
        super().__init__(config, model)
        self.model = load_model(model)
        if self.model.kind == "diffusion":
            raise ConfigError(f"task=concepts shows images, and {model.name} makes them; take model=toy_llava")
        self.layer = self.model.n_layers // 2 - 1
        self.text = "question" if not model.prompt else "caption"

    def world(self, seed: int) -> ConceptWorld:
        """Records of training scenes, and of the patches of balanced test scenes."""
        n_train, n_test = self.scaled(800, 40), self.scaled(400, 40)
        train = list(generate_samples("train", seed * n_train, (seed + 1) * n_train, seed=_EVALUATION))
        vectors, modalities = [], []
        for records, _ in self._read(train):
            token_BS = (records.modality == Modality.VISUAL) | (records.modality == Modality.TEXTUAL)
            vectors.append(records.vectors[token_BS].float())
            modalities.append(records.modality[token_BS])
        test = list(generate_samples("balanced", seed * n_test, (seed + 1) * n_test, seed=_EVALUATION))
        patches, grid = [], (0, 0)
        for records, batch in self._read(test):
            patches.append(patch_vectors(records, self.model.image_positions(batch, self.layer)))
            grid = self.model.image_grid(batch, self.layer)
        coverage_NPC = np.stack([_coverage(sample, grid) for sample in test])
        return ConceptWorld(
            TensorReader(torch.cat(vectors), torch.cat(modalities), blocks=self.model.record_blocks(self.layer)),
            Budget(self.config.n_latents, (_L0, _L0), self.scaled(1200, 20)),
            torch.cat(patches), coverage_NPC, CANVAS**2 / (grid[0] * grid[1]),
        )  # fmt: skip

    @torch.no_grad()
    def _read(self, samples: list[Sample]) -> Iterator[tuple[Records, Batch]]:
        """Records of batches of samples at the task's layer."""
        sites = [place.site for place in self.model.record_sites(self.layer)]
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            dual = self.model.kind == "dual_encoder"
            batch = self.model.collate(part, *((None, None) if dual else texts_of(part, self.text, self.spec.prompt)))
            with Trace(self.model, sites, stop=True) as acts:
                self.model(**batch)
            yield self.model.records(acts, batch, self.layer), batch

    def run(self, method: DictionaryMethod, world: ConceptWorld, seed: int) -> Dictionary:
        """Fit a dictionary to the tokens of the training scenes."""
        return method.fit(world.reader, world.budget, seed)

    def shuffle(self, world: ConceptWorld, seed: int) -> ConceptWorld:
        """Every image gets the masks of another one."""
        order_N = np.random.default_rng([seed, 11]).permutation(len(world.coverage_NPC))
        return replace(world, coverage_NPC=world.coverage_NPC[order_N])

    def chance(self, world: ConceptWorld) -> dict[str, float]:
        """A latent that is independent of a concept does best, in IoU, by lighting up everywhere: the area."""
        _, score = halves(len(world.coverage_NPC))
        area_C = world.coverage_NPC[score].sum((0, 1)) / (world.area * world.coverage_NPC[score][..., 0].size)
        return {"iou": float(area_C.mean()), "auroc": 0.5, "found": 0.0}

    def score(self, found: Dictionary, world: ConceptWorld) -> dict[str, float]:
        """Latent and threshold are chosen per concept on one half of the images and scored on the other."""
        n, patches, width = world.patches_NPW.shape
        visual = torch.full((n * patches,), int(Modality.VISUAL), dtype=torch.int8)
        latents_NPK = found.encode(world.patches_NPW.reshape(-1, width), visual).reshape(n, patches, -1).double()
        choose, score = halves(n)
        scale_K = latents_NPK[choose].amax((0, 1))
        picked = mask_overlap(latents_NPK[choose], world.coverage_NPC[choose], scale_K, world.area)
        scored = mask_overlap(latents_NPK[score], world.coverage_NPC[score], scale_K, world.area)
        best_C = picked.reshape(-1, len(CONCEPTS)).argmax(0)
        iou_C = scored.reshape(-1, len(CONCEPTS))[best_C, np.arange(len(CONCEPTS))]
        strongest_NK, has_NC = latents_NPK.amax(1).numpy(), world.coverage_NPC.sum(1) > 0
        speaker_C = np.nan_to_num(auroc(strongest_NK[choose], has_NC[choose])).argmax(0)
        auroc_C = auroc(strongest_NK[score], has_NC[score])[speaker_C, np.arange(len(CONCEPTS))]
        return {
            "iou": float(iou_C.mean()), "auroc": float(np.nanmean(auroc_C)), "found": float((iou_C >= 0.5).mean()),
            "l0": float((latents_NPK > 0).sum(-1).double().mean()),
        }


def _coverage(sample: Sample, grid: tuple[int, int]) -> np.ndarray:
    """Pixels of each concept's objects in each patch, [P, C]."""
    masks = (concept_mask(sample, name) for name in CONCEPTS)
    return np.stack([cell_coverage(mask_HW, *grid).ravel() for mask_HW in masks if mask_HW is not None], axis=-1)


def patch_vectors(records: Records, positions_BP: Tensor) -> Tensor:
    """Records of the patches that see the whole image, row by row, float32 [B, P, W]."""
    is_patch_BPS = (records.position[:, None] == positions_BP[..., None]) & (
        records.modality[:, None] == Modality.VISUAL)
    index_BP = is_patch_BPS.int().argmax(-1)
    return records.vectors[torch.arange(len(index_BP))[:, None], index_BP].float()


def mask_overlap(latents_NPK: Tensor, coverage_NPC: np.ndarray, scale_K: Tensor, area: float) -> np.ndarray:
    """Pixel IoU of every latent above every threshold with every concept, pooled over images: [T, K, C].

    Args:
        latents_NPK: float64. coverage_NPC: pixels of each concept in each patch.
        scale_K: what thresholds are shares of. A latent of scale 0 has IoU 0.
        area: pixels of a patch.
    """
    coverage_XC = torch.from_numpy(coverage_NPC).double().flatten(0, 1)
    latents_XK, total_C = latents_NPK.flatten(0, 1), coverage_XC.sum(0)
    overlaps = []
    for threshold in _THRESHOLDS:
        on_XK = ((latents_XK > threshold * scale_K) & (scale_K > 0)).double()
        both_KC = on_XK.T @ coverage_XC
        either_KC = on_XK.sum(0)[:, None] * area + total_C - both_KC
        overlaps.append((both_KC / either_KC.clamp_min(1)).numpy())
    return np.stack(overlaps)
