"""Planted records: sums of a few known atoms, some visual, some textual, some shared by both modalities."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmma.sae.records import TensorReader


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Results to the bit need a fixed number of threads, and these sizes need no second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Planted:
    """Atoms [A, d] of unit norm in the order visual, textual, shared; records; which shared atoms are on (labels)."""

    atoms_AD: Tensor
    n_visual: int
    n_textual: int
    acts_ND: Tensor
    modality_N: Tensor
    labels_NL: Tensor

    def reader(self, held_out: float = 0.1) -> TensorReader:
        return TensorReader(self.acts_ND, self.modality_N, labels_NL=self.labels_NL, held_out=held_out)


def plant(n_visual: int, n_textual: int, n_shared: int, d: int, n: int, density: float, seed: int = 0) -> Planted:
    generator = torch.Generator().manual_seed(seed)
    n_atoms = n_visual + n_textual + n_shared
    atoms_AD = F.normalize(torch.randn(n_atoms, d, generator=generator), dim=1)
    modality_N = (torch.rand(n, generator=generator) < 0.5).to(torch.int8)
    on_NA = torch.rand(n, n_atoms, generator=generator) < density
    on_NA[modality_N == 1, :n_visual] = False
    on_NA[modality_N == 0, n_visual : n_visual + n_textual] = False
    strength_NA = on_NA * (torch.rand(n, n_atoms, generator=generator) + 0.5)
    acts_ND = strength_NA @ atoms_AD + 0.01 * torch.randn(n, d, generator=generator)
    # Image tokens are larger and sit elsewhere: what standardisation is for.
    acts_ND = torch.where(modality_N[:, None] == 0, acts_ND * 10 + 3, acts_ND)
    return Planted(atoms_AD, n_visual, n_textual, acts_ND, modality_N, on_NA[:, n_visual + n_textual :].float())


@pytest.fixture(scope="session")
def planted() -> Planted:
    """24 + 24 + 16 atoms in 32 dimensions."""
    return plant(24, 24, 16, d=32, n=12_000, density=0.05)
