"""Localisation methods: how much does each image patch matter for the model's answer?"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmma.benchmark.registry import register
from cmma.causal.config import NoiseConfig
from cmma.causal.corruptions import embedding_std, noise_runs, noise_site, single_run
from cmma.causal.patching import activation_patch
from cmma.causal.queries import Query
from cmma.causal.readout import Readout, collate_queries
from cmma.hooks import Edit, TokenEdit, Where
from cmma.models.base import MultimodalModel

_NOISE = NoiseConfig(draws=3)


@register("localisation", "restoration")
class NoiseRestoration:
    """Noise trace: with noise on all patches, how much comes back when one patch is restored after the first layer."""

    def localise(self, model: MultimodalModel, query: Query, readout: Readout, seed: int) -> np.ndarray:
        """See `LocalisationMethod.localise`."""
        clean = single_run(model, query)
        std = embedding_std(model, [clean], noise_site(model, _NOISE))
        corrupt = noise_runs(model, clean, _NOISE, std, seed)
        patches = {str(number): position[None] for number, position in enumerate(_positions(model, query))}
        site = model.record_sites(0)[0].site
        draws = len(corrupt)
        result = activation_patch(model, [clean] * draws, corrupt, [site], [patches] * draws, readout)
        return result.effect_NRG[0, 0]


@register("localisation", "occlusion")
class Occlusion:
    """How much is lost when the pixels of one patch become the image's mean colour."""

    window = 1  # patches per side of what is occluded

    def localise(self, model: MultimodalModel, query: Query, readout: Readout, seed: int) -> np.ndarray:
        """See `LocalisationMethod.localise`."""
        rows, columns = model.image_grid(collate_queries(model, [query]))
        pixels_HW3 = np.asarray(query.sample.image)
        height, width = pixels_HW3.shape[:2]
        mean_3 = pixels_HW3.mean((0, 1)).round().astype(np.uint8)
        queries, corners = [query], list(product(range(rows - self.window + 1), range(columns - self.window + 1)))
        for row, column in corners:
            occluded_HW3 = pixels_HW3.copy()
            occluded_HW3[row * height // rows : (row + self.window) * height // rows,
                         column * width // columns : (column + self.window) * width // columns] = mean_3
            queries.append(replace(query, sample=replace(query.sample, image=Image.fromarray(occluded_HW3))))
        with torch.no_grad():
            clean, *occluded = readout(collate_queries(model, queries), queries).tolist()
        lost_RC, covered_RC = np.zeros((rows, columns)), np.zeros((rows, columns))
        for (row, column), score in zip(corners, occluded, strict=True):
            inside = np.s_[row : row + self.window, column : column + self.window]
            lost_RC[inside] += clean - score
            covered_RC[inside] += 1
        return (lost_RC / covered_RC).ravel()


@register("localisation", "occlusion_window")
class OcclusionWindow(Occlusion):
    """The same with windows of 2×2 patches (Zeiler and Fergus 2014); a patch scores the mean over its windows.

    One patch of an object is often not needed: the rest still shows what it is.
    """

    window = 2


@register("localisation", "gradient")
class GradientTimesEmbedding:
    """(e − ē) · ∂m/∂e at the patch embeddings that the language model reads, ē their mean over the image."""

    def localise(self, model: MultimodalModel, query: Query, readout: Readout, seed: int) -> np.ndarray:
        """See `LocalisationMethod.localise`."""
        leaves: list[Tensor] = []

        def through_leaf(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            leaves.append(acts_ND.detach().requires_grad_())
            return leaves[-1]

        with torch.enable_grad(), Edit(model, noise_site(model, _NOISE), TokenEdit(through_leaf, tokens="every")):
            score = readout(collate_queries(model, [query]), [query]).sum()
        embedding_PD, = leaves
        gradient_PD, = torch.autograd.grad(score, embedding_PD)
        centred_PD = embedding_PD.detach() - embedding_PD.detach().mean(0)
        return (centred_PD * gradient_PD).sum(1).double().numpy()


@register("localisation", "random")
class RandomPatches:
    """Control: random scores."""

    def localise(self, model: MultimodalModel, query: Query, readout: Readout, seed: int) -> np.ndarray:
        """See `LocalisationMethod.localise`."""
        return np.random.default_rng(seed).random(len(_positions(model, query)))


def _positions(model: MultimodalModel, query: Query) -> Tensor:
    """Positions of the patches in the stream of visual records, row by row, [P]."""
    return model.image_positions(collate_queries(model, [query]))[0].cpu()
