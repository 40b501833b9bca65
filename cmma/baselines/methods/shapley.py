"""SHAP (Lundberg and Lee 2017) through the shap library: Shapley values of the image's patches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import shap
import torch
from torch import Tensor

from cmma.baselines.ground import Ground, Images, Mentions, OutputOfRecords, PhraseCounts, Readout, image_records
from cmma.baselines.methods.base import DirectionMethod, Reading, strongest
from cmma.causal.queries import Query
from cmma.console import progress
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.mitigation.spoken import MentionReadout


class Shapley(DirectionMethod):
    """φ_p of each patch: its mean effect on the output over orders in which patches come in; absent = mean token.

    The explained outputs are those of the gradients, where the caption says them. The direction of an output is
    Σ_p φ_p (h_p - mean): where the patches lie that speak for it.
    """

    def __init__(self, ground: Ground) -> None:
        super().__init__("SHAP", ground)

    def read(self, images: Images) -> Reading:
        """One unit per concept. The image scores as its strongest patch does."""
        found_IPC = self._of_selection if images is self.ground.selection else self._concepts(images)
        return strongest(found_IPC, by_concept=True)

    def concept_directions(self) -> Tensor:
        """From the selection images."""
        return self._direction(self._of_selection, self.ground.selection.records_IPD)

    def hallucination_direction(self, mentions: Mentions) -> Tensor:
        """Of the margin of hallucinated words."""
        ground, wrong = self.ground, mentions.wrong
        samples = [mention.sample for mention in wrong]
        records_NPD = image_records(ground.model, ground.layer, samples, ground.config.batch_size)
        readout = MentionReadout(ground.model, SHAPES_VOCABULARY)
        return self._direction(self._values(wrong, records_NPD, readout), records_NPD)[0]

    @cached_property
    def _of_selection(self) -> np.ndarray:
        return self._concepts(self.ground.selection)

    def _concepts(self, images: Images) -> np.ndarray:
        readout = PhraseCounts(self.ground.model, images.labels.names)
        return self._values(images.queries, images.records_IPD, readout) * images.said_IC[:, None]

    def _direction(self, values_NPC: np.ndarray, records_NPD: Tensor) -> Tensor:
        offset_NPD = records_NPD - self.ground.baseline_D
        return torch.einsum("npc,npd->cd", torch.from_numpy(values_NPC).to(offset_NPD), offset_NPD)

    @torch.no_grad()
    def _values(self, queries: Sequence[Query], records_NPD: Tensor, readout: Readout) -> np.ndarray:
        """Shapley values [N, P, outputs], one image after the other."""
        parts = []
        with progress(self.name, total=len(queries)) as bar:
            for query, records_PD in zip(queries, records_NPD, strict=True):
                output = OutputOfRecords(self.ground.model, self.ground.layer, [query], readout)
                parts.append(shapley_values(output, records_PD, self.ground.baseline_D,
                                            self.ground.config.shap_permutations, self.ground.config.seed))
                bar.advance()
        return np.stack(parts)


def shapley_values(
    output: OutputOfRecords, records_PD: Tensor, baseline_D: Tensor, n_permutations: int, seed: int
) -> np.ndarray:
    """Values [P, outputs] of one image's patches; they sum to the output less that of an image of baselines."""
    n_patches = len(records_PD)

    def present(some_NP: np.ndarray) -> np.ndarray:
        kept_NP1 = torch.from_numpy(some_NP.astype(bool)).to(records_PD.device)[..., None]
        records_NPD = torch.where(kept_NP1, records_PD, baseline_D)
        found = output(records_NPD, torch.zeros(len(records_NPD), dtype=torch.long))
        return found.reshape(len(records_NPD), -1).double().cpu().numpy()

    explainer = shap.explainers.Permutation(present, np.zeros((1, n_patches)), seed=seed)
    n_evaluations = n_permutations * (2 * n_patches + 1)
    found = explainer(np.ones((1, n_patches)), max_evals=n_evaluations, batch_size=2 * n_patches + 1, silent=True)
    return np.asarray(found.values[0]).reshape(n_patches, -1)
