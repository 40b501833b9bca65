"""First stage of toy_llava: its vision tower learns to name, from every patch, the object in whose cell it lies.

LLaVA starts from a pretrained encoder (CLIP); this is the pretraining that stands for it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipVisionModel, CLIPVisionModel

from cmma.testbed.training.llava_data import FACTOR_LEVELS, IGNORE, PLACE_LEVELS, VisionBatches
from cmma.testbed.training.loop import Recipe, train


class PatchReader(nn.Module):
    """A vision tower with one linear head per factor on every patch of its last hidden state."""

    def __init__(self, tower: CLIPVisionModel | BlipVisionModel, levels: dict[str, int]) -> None:
        super().__init__()
        width = tower.config.hidden_size
        self.tower = tower
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in levels.items()})

    def forward(self, pixels_NCYX: Tensor) -> dict[str, Tensor]:
        hidden_NPD = self.norm(self.tower(pixels_NCYX, output_hidden_states=True).hidden_states[-1][:, 1:])
        return {name: head(hidden_NPD) for name, head in self.heads.items()}


def factor_loss(reader: nn.Module, batch: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
    """Sum over factors of the mean cross-entropy per labelled patch, and the accuracy per factor."""
    pixels_NCYX, labels = batch
    with torch.autocast(pixels_NCYX.device.type, torch.bfloat16):
        logits = reader(pixels_NCYX)
    total = pixels_NCYX.new_zeros(())
    right = {}
    for name, logits_NPL in logits.items():
        target = labels[name].flatten()
        total = total + F.cross_entropy(logits_NPL.float().flatten(0, 1), target, ignore_index=IGNORE)
        known = target != IGNORE
        right[name] = (logits_NPL.flatten(0, 1).argmax(-1) == target)[known].float().mean().item()
    return total, right


def pretrain_vision(
    tower: CLIPVisionModel | BlipVisionModel, recipe: Recipe, seed: int, checkpoint: Path, places: bool = False
) -> float:
    """Train `tower` in place; returns minutes.

    Args:
        places: also name the cell that the patch lies in. For readers by cross-attention, which learn where a patch is
            from its content alone.
    """
    reader = PatchReader(tower, FACTOR_LEVELS | PLACE_LEVELS if places else FACTOR_LEVELS)
    reader.train()
    batches = VisionBatches(recipe.batch, recipe.steps, seed)
    return train(reader, recipe, batches, lambda batch: factor_loss(reader, batch), checkpoint)
