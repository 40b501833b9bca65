"""Write small dictionaries with the libraries that read them, for tests/sae/test_interchange.py.

    SPARSIFY_DISABLE_TRITON=1 python scripts/make_foreign_saes.py tests/sae/data

needs eai-sparsify 1.3.3 and dictionary-learning 0.1.0 (`pip install --no-deps` both beside cmma's own environment).
Each folder is a genuine save, with `expected.safetensors`: records, and the library's own latents and reconstructions.
`losses.safetensors` has loss and gradients of dictionary_learning's trainers on the saved weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from dictionary_learning import AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

D, K, TOP, N = 16, 64, 8, 16


def main() -> None:
    """Write every folder below the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.manual_seed(0)
    records_ND = torch.randn(N, D) * 2 + 0.5
    for transcode in (False, True):
        write_sparsify(out / f"sparsify{'_transcoder' if transcode else ''}", records_ND, transcode)
    for name, autoencoder in {
        "standard": AutoEncoder(D, K), "april": AutoEncoderNew(D, K), "gated": GatedAutoEncoder(D, K),
        "jumprelu": JumpReluAutoEncoder(D, K), "topk": AutoEncoderTopK(D, K, TOP),
        "batchtopk": BatchTopKSAE(D, K, TOP), "matryoshka": MatryoshkaBatchTopKSAE(D, K, TOP, [16, 16, 32]),
    }.items():
        write_dictionary_learning(out / f"dictionary_learning_{name}", autoencoder, records_ND)
    write_losses(out, records_ND)


@torch.no_grad()
def unsettle(module: torch.nn.Module) -> None:
    """Away from the initial values, where biases are zero and encoders are transposed decoders."""
    for name, parameter in module.named_parameters():
        if name == "threshold":
            parameter.uniform_(0.2, 1.0)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    for name, buffer in module.named_buffers():
        if name == "threshold":
            buffer.fill_(0.7)


@torch.no_grad()
def write_sparsify(folder: Path, records_ND: Tensor, transcode: bool) -> None:
    """A TopK dictionary, or a transcoder."""
    coder = SparseCoder(D, SparseCoderConfig(num_latents=K, k=TOP, transcode=transcode))
    unsettle(coder)
    coder.save_to_disk(folder)
    out = coder(records_ND)
    latents_NK = torch.zeros(N, K).scatter(1, out.latent_indices, out.latent_acts)
    expect(folder, records_ND, latents_NK, out.sae_out)


@torch.no_grad()
def write_dictionary_learning(folder: Path, autoencoder: Any, records_ND: Tensor) -> None:
    """A save as the library's training loop makes it: the state_dict and the trainer's configuration."""
    unsettle(autoencoder)
    save_trained(folder, autoencoder, {"trainer_class": "?"})
    latents_NK = autoencoder.encode(records_ND)
    expect(folder, records_ND, latents_NK, autoencoder.decode(latents_NK))


def save_trained(folder: Path, autoencoder: Any, trainer: dict[str, Any]) -> None:
    """`ae.pt` and `config.json`, as `dictionary_learning.training.trainSAE` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.cpu() for name, value in autoencoder.state_dict().items()}, folder / "ae.pt")
    trainer |= {"dict_class": type(autoencoder).__name__, "activation_dim": D, "dict_size": K}
    if hasattr(autoencoder, "k"):
        trainer["k"] = autoencoder.k.item()
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": None}))


def expect(folder: Path, records_ND: Tensor, latents_NK: Tensor, reconstruction_ND: Tensor) -> None:
    """What the library makes of the records."""
    save_file({"records": records_ND, "latents": latents_NK.contiguous(),
               "reconstruction": reconstruction_ND.contiguous()}, folder / "expected.safetensors")


def write_losses(out: Path, records_ND: Tensor) -> None:
    """Losses and gradients of the standard (λ = 0.05) and the TopK trainer (no dead latents)."""
    common = {"activation_dim": D, "dict_size": K, "layer": 0, "lm_name": "none", "device": "cpu"}
    standard = StandardTrainer(steps=10, l1_penalty=0.05, lr=1e-3, warmup_steps=0, sparsity_warmup_steps=None,
                               **common)
    topk = TopKTrainer(steps=10, k=TOP, warmup_steps=0, **common)
    found = {"records": records_ND}
    for name, trainer in (("standard", standard), ("topk", topk)):
        unsettle(trainer.ae)
        trainer.ae.decoder.weight.data = torch.nn.functional.normalize(trainer.ae.decoder.weight.data, dim=0)
        save_trained(out / f"dictionary_learning_loss_{name}", trainer.ae, trainer.config)
        loss = trainer.loss(records_ND, step=1)
        loss.backward()
        found[f"{name}.loss"] = loss.detach()
        found |= {f"{name}.{key}": value.grad.contiguous() for key, value in trainer.ae.named_parameters()}
    save_file(found, out / "losses.safetensors")


if __name__ == "__main__":
    main()
