"""A small training run with every term of the objective, attention, and resampling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.io import save_sae
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train

OPTIM = OptimConfig(lr=1e-3, batch=50, steps=40, warmup=5, evaluate_every=7, checkpoint_every=6, log_every=1,
                    patience=30, dead_after=150, resample_every=10)


def reader() -> TensorReader:
    """600 records of both modalities with labels and context vectors."""
    g = torch.Generator().manual_seed(0)
    acts_ND = torch.randn(600, 12, generator=g).relu() * torch.rand(600, 12, generator=g)
    return TensorReader(acts_ND, torch.arange(600) % 3, labels_NL=(torch.rand(600, 5, generator=g) < 0.3).float(),
                        context_NCD=torch.randn(600, 2, 12, generator=g))


def run(folder: Path, log: Callable[[dict], None] = lambda metrics: None) -> None:
    """Train with the checkpoints in FOLDER/checkpoint and save as FOLDER/sae."""
    config = preset("msae", n_latents=40, initial_l0=8.0, lambda1=0.05, lambda2=0.01, lambda3=0.01, attention=True,
                    attention_rank=3, adaptive_sparsity=True)
    sae = build_sae(config, 12, Standardiser.fit(reader()))
    train(sae, reader(), OPTIM, folder / "checkpoint", log, seed=3)
    save_sae(sae, folder / "sae")
