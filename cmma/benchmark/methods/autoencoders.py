"""Sparse autoencoders as dictionary methods, and the controls that no table should lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from cmma.benchmark.protocols import Budget
from cmma.benchmark.registry import register
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, SAEConfig, preset
from cmma.sae.records import ActivationReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.trainer import Trainer


class SAEDictionary:
    """A `SparseAutoencoder` as a `Dictionary`."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae.requires_grad_(False)
        self.attends = sae.attention is not None
        self.decoder_MKW = torch.stack([sae.directions(m) for m in (Modality.VISUAL, Modality.TEXTUAL)])

    def encode(self, acts_BW: Tensor, modality_B: Tensor, context_BCW: Tensor | None = None) -> Tensor:
        """See `Dictionary.encode`."""
        return self.sae.encode(acts_BW, modality_B, context_BCW)

    def decode(self, latents_BK: Tensor, modality_B: Tensor) -> Tensor:
        """See `Dictionary.decode`."""
        return self.sae.decode(latents_BK, modality_B)


class SAEMethod:
    """A sparse autoencoder trained as `cmma.sae` trains it, at the benchmark's budget.

    Args:
        config: architecture and objective at a budget.
    """

    learns_decoder = True

    def __init__(self, config: Callable[[Budget], SAEConfig]) -> None:
        self.config = config

    def fit(self, reader: ActivationReader, budget: Budget, seed: int) -> SAEDictionary:
        """Train from scratch."""
        *_, trainer = self.steps(reader, budget, seed)
        trainer.sae.conclude(reader, budget.batch, seed)
        return SAEDictionary(trainer.sae)

    def steps(self, reader: ActivationReader, budget: Budget, seed: int) -> Iterator[Trainer]:
        """The trainer before the first step and after each one."""
        sae = build_sae(self.config(budget), reader.width, Standardiser.fit(reader), seed)
        sae.W_dec.requires_grad_(self.learns_decoder)
        optim = OptimConfig(
            lr=3e-3, batch=budget.batch, steps=budget.steps, warmup=min(50, budget.steps // 4),
            dead_after=100 * budget.batch, resample_every=100,
        )
        trainer = Trainer(sae, optim, reader.n_records, reader.n_labels, seed)
        yield trainer
        for batch in islice(reader.batches(budget.batch, seed, together=sae.reads_pairs), budget.steps):
            trainer.advance(batch)
            yield trainer


def _relu(arch: str, budget: Budget, **options: Any) -> SAEConfig:
    """An architecture with a price, that starts sparse and is driven to the target L0: dense starts find no atom."""
    visual, textual = budget.l0_M
    settings = {"initial_l0": 8.0, "lambda1": 1.0, "adaptive_sparsity": True, "target_l0_visual": visual,
                "target_l0_textual": textual}
    return preset(arch, n_latents=budget.n_latents, **settings | options)


def _msae(budget: Budget, arch: str = "msae", **options: Any) -> SAEConfig:
    """The paper's λ2 and λ3 are for dictionaries a hundred times as large and do nothing here; these act."""
    return _relu(arch, budget, **{"lambda2": 0.02, "lambda3": 0.02} | options)


def _counted(arch: str, budget: Budget) -> SAEConfig:
    """An architecture that keeps k latents."""
    return preset(arch, n_latents=budget.n_latents, k=budget.k)


def _matched(budget: Budget) -> SAEConfig:
    """Two dictionaries of half the size: as many latents in all as the others have."""
    return preset("separate_matched", n_latents=budget.n_latents // 2, k=budget.k)


_CONFIGS: dict[str, Callable[[Budget], SAEConfig]] = {
    "msae": _msae,
    # What each part of M-SAE buys; `standard` is without either term.
    "msae_no_cross": partial(_msae, lambda2=0.0),
    "msae_no_align": partial(_msae, lambda3=0.0),
    "msae_attention": partial(_msae, attention=True),
    "msae_constant_lambda1": partial(_msae, adaptive_sparsity=False),
    "msae_decoders": partial(_msae, arch="msae_decoders"),
    **{arch: partial(_relu, arch) for arch in ("standard", "gated", "jumprelu")},
    **{arch: partial(_counted, arch) for arch in (
        "topk", "batchtopk", "matryoshka", "sparc", "group_sparse", "vl_sae")},
    "separate_matched": _matched,
}
for _name, _config in _CONFIGS.items():
    register("dictionary", _name)(partial(SAEMethod, _config))


class _TopKControl(SAEMethod):
    def __init__(self) -> None:
        super().__init__(_CONFIGS["topk"])


@register("dictionary", "untrained")
class Untrained(_TopKControl):
    """Control: TopK as it is initialised. What it scores is owed to the data, not to learning."""

    def fit(self, reader: ActivationReader, budget: Budget, seed: int) -> SAEDictionary:
        """Only the standardiser is fitted."""
        return SAEDictionary(next(self.steps(reader, budget, seed)).sae)

    def steps(self, reader: ActivationReader, budget: Budget, seed: int) -> Iterator[Trainer]:
        """The trainer before the first step."""
        yield next(super().steps(reader, budget, seed))


@register("dictionary", "frozen_decoder")
class FrozenDecoder(_TopKControl):
    """Control: TopK whose random decoder is never changed; the encoder learns ("Sanity checks", arXiv 2602.14111)."""

    learns_decoder = False
