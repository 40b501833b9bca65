"""Training steps of other libraries, as their own trainers do them, for `bench_sae.py`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[], object]


def bare_step(records_BD: Tensor, n_latents: int) -> Step:
    """What a few lines of plain autograd cost: linear, ReLU, linear, squared error and L1, fused Adam."""
    d = records_BD.shape[1]
    encoder, decoder = nn.Linear(d, n_latents), nn.Linear(n_latents, d)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4, fused=True)

    def step() -> None:
        latents_BK = encoder(records_BD).relu()
        error = (decoder(latents_BK) - records_BD).square().sum(1).mean()
        (error + 1e-3 * latents_BK.sum(1).mean()).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def saelens_step(records_BD: Tensor, n_latents: int, k: int | None) -> Step:
    """SAELens (`SAETrainer._train_step`): TopK, or with k None its standard dictionary."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    sizes = {"d_in": records_BD.shape[1], "d_sae": n_latents}
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(**sizes)) if k is None else (
        TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=k)))
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-4)
    silent_K, fired_K = torch.zeros(n_latents), torch.zeros(n_latents)
    given = TrainStepInput(sae_in=records_BD, coefficients={} if k else {"l1": 1e-3}, dead_neuron_mask=None,
                           n_training_steps=0, is_logging_step=False)

    def step() -> None:
        done = sae.training_forward_pass(given)
        with torch.no_grad():
            firing = done.feature_acts.bool().float()
            fired = firing.sum(-2).bool()
            silent_K.add_(1)[fired.to_dense() if fired.is_sparse else fired] = 0
            fired_K.add_(firing.sum(0))
        done.loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def sparsify_step(records_BD: Tensor, n_latents: int, k: int) -> Step:
    """sparsify (`Trainer.fit` with loss_fn=fvu, optimizer=adam) and its eager decoder."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    sae = SparseCoder(records_BD.shape[1], SparseCoderConfig(num_latents=n_latents, k=k))
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)
    fired_K = torch.zeros(n_latents, dtype=torch.bool)

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        done = sae(records_BD)
        fired_K[done.latent_indices.flatten()] = True
        done.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    return step


def peer_steps(records_BD: Tensor, n_latents: int, k: int) -> dict[str, Step]:
    """The steps of those libraries that are installed; says how to install the others."""
    rows: dict[str, Step] = {}
    if _installed("sae_lens", "sae-lens"):
        rows["SAELens standard"] = saelens_step(records_BD, n_latents, None)
        rows[f"SAELens TopK, k={k}"] = saelens_step(records_BD, n_latents, k)
    if _installed("sparsify", "eai-sparsify"):
        rows[f"sparsify TopK, k={k}"] = sparsify_step(records_BD, n_latents, k)
    return rows


def _installed(module: str, package: str) -> bool:
    found = importlib.util.find_spec(module) is not None
    if not found:
        print(f"{module} is not measured: pip install {package}")
    return found
