"""A small training run, alone or as one rank of several: `torchrun --nproc-per-node=2 worker.py FOLDER`.

It has every term of the objective, attention, and resampling. Rank 0 writes FOLDER/sae.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist

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


def run(folder: Path, log: Callable[[dict], None] = lambda metrics: None, rank: int = 0, world: int = 1) -> None:
    """Train with the checkpoints in FOLDER/checkpoint and save."""
    config = preset("msae", n_latents=40, initial_l0=8.0, lambda1=0.05, lambda2=0.01, lambda3=0.01, attention=True,
                    attention_rank=3, adaptive_sparsity=True)
    sae = build_sae(config, 12, Standardiser.fit(reader()))
    train(sae, reader(), OPTIM, folder / "checkpoint", log, seed=3, rank=rank, world=world)
    if rank == 0:
        save_sae(sae, folder / "sae")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run(Path(sys.argv[1]), rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]))
    dist.destroy_process_group()
