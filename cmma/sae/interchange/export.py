"""Writing a dictionary for SAELens and sparsify."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from cmma.artifacts.files import atomic_path, write_json
from cmma.errors import ArtifactError
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.towers import Towers
from cmma.sae.interchange import saelens, sparsify
from cmma.sae.standardiser import modality_row

_SAELENS = {"msae": "standard", "standard": "standard", "topk": "topk", "group_sparse": "topk", "gated": "gated",
            "jumprelu": "jumprelu", "batchtopk": "jumprelu", "matryoshka": "jumprelu"}
_FORMAT_OF = "6.0.0"
"""The version of SAELens whose configuration this is; what lacks one is read as older."""


class Affine(NamedTuple):
    """Weights with the standardisation folded in: W_enc (x − b_dec) + b_enc, and a W_dec + b_dec."""

    W_enc_KD: Tensor
    W_dec_KD: Tensor
    b_enc_K: Tensor
    b_dec_D: Tensor


def save_saelens(sae: SparseAutoencoder, folder: Path | str, modality: Modality | None = None) -> None:
    """Write a dictionary that `sae_lens.SAE.load_from_disk` reads, with the same latents and reconstructions.

    BatchTopK and Matryoshka become JumpReLU with one threshold, as SAELens saves them itself.

    Args:
        sae: the dictionary.
        folder: is made.
        modality: standardise as records of this modality; None: the modalities must be standardised alike.

    Raises:
        ArtifactError: the format has no place for cross-modal attention, a decoder per modality, or a standardisation
            per modality when none is chosen.
    """
    if sae.config.arch not in _SAELENS:
        raise ArtifactError(f"SAELens has no counterpart of sae.arch={sae.config.arch}; it has "
                            f"{', '.join(sorted({*_SAELENS.values()}))}")
    arch, weights = _SAELENS[sae.config.arch], fold(sae, modality)
    tensors = {"W_enc": weights.W_enc_KD.T, "W_dec": weights.W_dec_KD, "b_dec": weights.b_dec_D}
    config: dict[str, Any] = {
        "architecture": arch, "d_in": sae.d, "d_sae": sae.n_latents, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": _FORMAT_OF},
    }
    tensors["b_gate" if arch == "gated" else "b_enc"] = weights.b_enc_K
    if arch == "gated":
        tensors |= {"r_mag": sae.get_parameter("r_mag"), "b_mag": sae.get_parameter("b_mag")}
    elif arch == "jumprelu":
        tensors["threshold"] = _threshold(sae, modality)
    elif arch == "topk":
        config |= {"k": _kept(sae, modality), "rescale_acts_by_decoder_norm": False}
    _write(Path(folder), saelens.WEIGHTS, tensors, config)


def save_sparsify(sae: SparseAutoencoder, folder: Path | str, modality: Modality | None = None) -> None:
    """Write a TopK dictionary that `sparsify.SparseCoder.load_from_disk` reads; arguments as `save_saelens`.

    Raises:
        ArtifactError: another architecture than TopK, or as `save_saelens`.
    """
    if _SAELENS.get(sae.config.arch) != "topk":
        raise ArtifactError(f"sparsify has TopK dictionaries only, not sae.arch={sae.config.arch}; write it for "
                            "SAELens")
    weights = fold(sae, modality)
    tensors = {"encoder.weight": weights.W_enc_KD, "encoder.bias": weights.b_enc_K, "W_dec": weights.W_dec_KD,
               "b_dec": weights.b_dec_D}
    config = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": False, "num_latents": sae.n_latents,
        "k": _kept(sae, modality), "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": sae.d,
    }
    _write(Path(folder), sparsify.WEIGHTS, tensors, config)


@torch.no_grad()
def fold(sae: SparseAutoencoder, modality: Modality | None = None) -> Affine:
    """The dictionary without its standardiser, which is affine for one modality.

    h = (x − m) / s turns W_enc (h − b) + c into (W_enc / s)(x − (m + s b)) + c, and s (a W_dec + b) + m into
    a (W_dec s) + (m + s b): features are no longer of norm one.

    Raises:
        ArtifactError: see `save_saelens`.
    """
    if sae.attention is not None:
        raise ArtifactError("cross-modal attention reads the other modality, for which no other library has a place; "
                            "train with sae.attention=false to export")
    if isinstance(sae, Towers):
        raise ArtifactError(f"sae.arch={sae.config.arch} has a decoder for each modality, other formats have one")
    mean_MD, scale_MD = sae.standardiser.mean_MD, sae.standardiser.scale_MD
    alike = torch.equal(mean_MD, mean_MD[:1].expand_as(mean_MD)) and (
        torch.equal(scale_MD, scale_MD[:1].expand_as(scale_MD)))
    if modality is None and not alike:
        raise ArtifactError("each modality is standardised by its own mean and scale, which is not one affine map; "
                            "export for one of them with modality=")
    row = modality_row(None) if modality is None else int(modality)
    mean_D, scale_D = mean_MD[row].double(), scale_MD[row].double()
    if (scale_D == 0).any():
        raise ArtifactError("a pair view of one modality lacks a half; export the joint view with modality=JOINT")
    W_enc_KD, W_dec_KD = sae.W_enc.double() / scale_D, sae.W_dec.double() * scale_D
    b_dec_D = mean_D + scale_D * sae.b_pre.double()
    return Affine(*(value.float() for value in (W_enc_KD, W_dec_KD, sae.b_enc.double(), b_dec_D)))


def _kept(sae: SparseAutoencoder, modality: Modality | None) -> int:
    return _one("sae.adaptive_sparsity", sae.config.kept_latents(), modality)


def _threshold(sae: SparseAutoencoder, modality: Modality | None) -> Tensor:
    """[K], of JumpReLU or from the one number of BatchTopK."""
    if sae.config.arch == "jumprelu":
        return sae.get_parameter("threshold")
    number = _one("sae.adaptive_sparsity", sae.get_buffer("threshold_M").tolist(), modality)
    return torch.full((sae.n_latents,), number)


def _one(key: str, by_modality: Any, modality: Modality | None) -> Any:
    if modality is not None:
        return by_modality[int(modality)]
    if len({*by_modality}) > 1:
        raise ArtifactError(f"{key}=true keeps another number of latents in each modality; export for one of them "
                            "with modality=")
    return by_modality[-1]


def _write(folder: Path, weights: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Weights first, then the configuration: a killed save never passes for whole."""
    plain = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(folder / weights) as temporary:
        save_file(plain, temporary)
    write_json(folder / saelens.CONFIG, config)
