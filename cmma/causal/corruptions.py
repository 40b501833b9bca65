"""How a corrupt run is made: Gaussian noise on the image embeddings, another image, another token."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmma.causal.config import NoiseConfig
from cmma.causal.patching import Run
from cmma.causal.queries import Contrast, Query
from cmma.errors import DataError
from cmma.hooks import TokenEdit, Trace, Where
from cmma.models.base import MultimodalModel


def single_run(model: MultimodalModel, query: Query) -> Run:
    """The query as a run of one row, its answer teacher-forced where it has one."""
    answers = [query.answer] if query.answer else None
    return Run(query, model.collate([query.sample], [query.text], answers))


def noise_site(model: MultimodalModel, config: NoiseConfig) -> str:
    """Where the noise enters: as configured, else the image's embeddings."""
    return config.site or model.image_site


@torch.no_grad()
def embedding_std(model: MultimodalModel, runs: Sequence[Run], site: str) -> float:
    """σ: standard deviation of all entries of the embeddings at `site` over the runs, in float64 (as ROME's)."""
    count, total, squares = 0, 0.0, 0.0
    for run in runs:
        with Trace(model, [site]) as acts:
            model(**run.batch)
        values = acts[site].double()
        count += values.numel()
        total += float(values.sum())
        squares += float(values.square().sum())
    if not count:
        raise DataError(f"σ of the embeddings at {site} needs at least one sample")
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2))


def noise_runs(model: MultimodalModel, clean: Run, config: NoiseConfig, std: float, seed: int) -> list[Run]:
    """`config.draws` corrupt runs of one clean run.

    The noise is a function of seed, sample and draw alone, and of the position within a run: every copy of the run in
    a batch of cells gets the same noise.
    """
    site = noise_site(model, config)
    return [
        Run(clean.query, clean.batch, ((site, noise_edit(config, std, _stable_seed(seed, clean.query.key, draw))),))
        for draw in range(config.draws)
    ]


def noise_edit(config: NoiseConfig, std: float, seed: int) -> TokenEdit:
    """Additive N(0, (scale · std)²) or multiplicative N(1, scale²) noise, one fixed value per position and channel."""
    cache: dict[tuple[int, int], Tensor] = {}

    def noise(positions: int, width: int) -> Tensor:
        if (positions, width) not in cache:
            generator = torch.Generator().manual_seed(seed)
            cache[positions, width] = torch.randn(positions, width, generator=generator)
        return cache[positions, width]

    def corrupt(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        normal_ND = noise(int(where.position.max()) + 1, acts_ND.shape[-1]).to(acts_ND)[where.position]
        if config.style == "multiplicative":
            return acts_ND * (1 + config.scale * normal_ND)
        return acts_ND + config.scale * std * normal_ND

    return TokenEdit(corrupt, tokens="every", phase="prefill")


def contrast_runs(model: MultimodalModel, contrast: Contrast) -> tuple[Run, Run]:
    """Clean and corrupt run of a pair, both scored on the clean query's answers.

    Raises:
        DataError: the two texts have different numbers of tokens, so that no position corresponds to itself.
    """
    clean, corrupt = single_run(model, contrast.clean), single_run(model, contrast.corrupt)
    lengths = [{name: tuple(value.shape) for name, value in run.batch.items()} for run in (clean, corrupt)]
    ends = [None if run.batch.prompt_end is None else run.batch.prompt_end.tolist() for run in (clean, corrupt)]
    if lengths[0] != lengths[1] or ends[0] != ends[1]:
        raise DataError(
            f"sample {contrast.clean.key!r}: {contrast.clean.text!r} and {contrast.corrupt.text!r} differ in their "
            "number of tokens (or their images in size); a pair must agree in both"
        )
    return clean, corrupt


def _stable_seed(seed: int, key: str, draw: int) -> int:
    """A seed that is the same on every machine and in every process (`hash` of a string is not)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{draw}".encode()).digest()[:7], "big")
