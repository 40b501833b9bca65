"""The control: a dictionary as it is initialised. What it scores is owed to the choice among many units."""

from __future__ import annotations

from cmma.baselines.config import RANDOM
from cmma.baselines.ground import Ground
from cmma.baselines.methods.base import DictionaryMethod
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset


def random_directions(ground: Ground, n_units: int) -> DictionaryMethod:
    """As many random units as the dictionary has, sparse by their bias."""
    sae = build_sae(preset("standard", n_latents=n_units), ground.reader.width, ground.standardiser, ground.config.seed)
    return DictionaryMethod(RANDOM, ground, sae.to(ground.standardiser.mean_MD.device))
