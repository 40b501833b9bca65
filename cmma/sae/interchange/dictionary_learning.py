"""dictionary_learning: `config.json` and `ae.pt` (read against dictionary-learning 0.1)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cmma.artifacts.tensors import read_tensors
from cmma.errors import ArtifactError
from cmma.sae.interchange.foreign import Foreign, check_names, check_shapes, read_config, refuse

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_KEYS: dict[str, set[str]] = {
    "AutoEncoder": {*_LINEAR, "bias"},
    "AutoEncoderNew": {*_LINEAR, "decoder.bias"},
    "GatedAutoEncoder": {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"},
    "JumpReluAutoEncoder": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "AutoEncoderTopK": {*_LINEAR, "b_dec", "k", "threshold"},
    "BatchTopKSAE": {*_LINEAR, "b_dec", "k", "threshold"},
    "MatryoshkaBatchTopKSAE": {"W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"},
}
"""Classes and the names of their tensors."""


def read_dictionary_learning(folder: Path) -> Foreign:
    """A dictionary that dictionary_learning saved, as the weights are: nothing is renormalised.

    TopK ignores its threshold, as the library does unless asked; BatchTopK and Matryoshka use it. JumpReLU and
    AutoEncoderNew encode records as they are, the others subtract the decoder's bias.

    Raises:
        ArtifactError: a class, key or shape that cannot be honoured, by name; a file that is more than tensors.
    """
    path, config = folder / CONFIG, read_config(folder / CONFIG)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise ArtifactError(f"{path}: missing key trainer.dict_class")
    kind = trainer["dict_class"]
    if kind not in _KEYS:
        raise refuse(path, "trainer.dict_class", kind, f"only {', '.join(_KEYS)} are")
    tensors = read_tensors(folder / WEIGHTS)
    optional = {"threshold", "k"} if kind == "AutoEncoderTopK" else set()  # older versions had neither
    check_names(tensors, _KEYS[kind] - optional, optional, folder / WEIGHTS)
    W_enc_KD, W_dec_KD = _weights(tensors)
    n_latents, d = W_enc_KD.shape
    check_shapes({"decoder": W_dec_KD}, {"decoder": (n_latents, d)}, folder / WEIGHTS)
    for key, value in (("activation_dim", d), ("dict_size", n_latents)):
        if trainer.get(key, value) != value:
            raise ArtifactError(f"{path}: trainer.{key}={trainer[key]}, but {WEIGHTS} has {value}")
    bias_K, bias_D = _biases(tensors, kind)
    more: dict[str, Tensor] = {}
    arch = {"AutoEncoder": "standard", "AutoEncoderNew": "standard", "GatedAutoEncoder": "gated",
            "JumpReluAutoEncoder": "jumprelu", "AutoEncoderTopK": "topk"}.get(kind, "batchtopk")
    if arch == "gated":
        more = {"r_mag": tensors["r_mag"], "b_mag": tensors["mag_bias"]}
    elif arch == "jumprelu":
        more = {"threshold": tensors["threshold"].clamp(min=0)}  # ReLU is applied to what passes
    elif arch == "batchtopk":
        more = {"threshold_M": tensors["threshold"].clamp(min=0).expand(3)}  # −1: never set
    k = int(tensors["k"]) if "k" in tensors else trainer.get("k")
    if arch in ("topk", "batchtopk") and not isinstance(k, int):
        raise ArtifactError(f"{path}: missing key trainer.k")
    return Foreign(arch, W_enc_KD, W_dec_KD, bias_K, bias_D, kind not in ("JumpReluAutoEncoder", "AutoEncoderNew"),
                   k, more)


def _weights(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    if "W_enc" in tensors:
        return tensors["W_enc"].T, tensors["W_dec"]
    return tensors["encoder.weight"], tensors["decoder.weight"].T


def _biases(tensors: dict[str, Tensor], kind: str) -> tuple[Tensor, Tensor]:
    """Of the encoder and of the decoder, whatever they are called."""
    encoder = next(name for name in ("b_enc", "encoder.bias", "gate_bias") if name in tensors)
    decoder = next(name for name in ("b_dec", "bias", "decoder_bias", "decoder.bias") if name in tensors)
    return tensors[encoder], tensors[decoder]
