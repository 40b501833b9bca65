"""SAELens: `cfg.json` and `sae_weights.safetensors` (read against sae-lens 6.54)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmma.artifacts.tensors import read_tensors
from cmma.errors import ArtifactError
from cmma.sae.interchange.foreign import Foreign, check_names, check_shapes, read_config, refuse

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_READ = {
    "architecture", "d_in", "d_sae", "k", "apply_b_dec_to_input", "normalize_activations", "reshape_activations",
    "rescale_acts_by_decoder_norm", "activation_fn", "activation_fn_str", "activation_fn_kwargs",
    "finetuning_scaling_factor",
}
_OF_TRAINING = {  # what a training checkpoint adds; none of it changes what the dictionary computes
    "dtype", "device", "metadata", "noise", "mse_loss_normalization", "b_dec_init_method", "decoder_init_norm",
    "l1_coefficient", "l1_warm_up_steps", "l0_coefficient", "l0_warm_up_steps", "lp_norm", "use_sparse_activations",
    "aux_loss_coefficient", "topk_threshold_lr", "jumprelu_init_threshold", "jumprelu_bandwidth",
    "jumprelu_sparsity_loss_mode", "jumprelu_tanh_scale", "jumprelu_ste_to_input", "pre_act_loss_coefficient",
    "target_l0", "matryoshka_widths", "use_matryoshka_aux_loss", "detach_matryoshka_losses",
    "skip_outermost_matryoshka_loss", "include_outermost_matryoshka_loss",
}
_BEFORE_6 = {  # where an older version kept what is `metadata` now
    "model_name", "hook_name", "hook_point", "hook_layer", "hook_point_layer", "hook_head_index",
    "hook_point_head_index", "model_from_pretrained_kwargs", "prepend_bos", "dataset_path",
    "dataset_trust_remote_code", "context_size", "neuronpedia_id", "seqpos_slice", "sae_lens_training_version",
    "sae_lens_version", "model_class_name", "exclude_special_tokens",
}
_BIASES = {
    "standard": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold"), "batchtopk": ("b_enc",),
    "matryoshka_batchtopk": ("b_enc",), "gated": ("b_gate", "r_mag", "b_mag"),
}


def read_saelens(folder: Path) -> Foreign:
    """A dictionary that SAELens saved for inference (`save_model`, `save_inference_model`) or as a checkpoint.

    Honoured: whether b_dec is subtracted; the rescaling by decoder norms, which is folded into both weights as SAELens
    does itself; BatchTopK by its threshold. hook_z dictionaries read heads laid side by side.

    Raises:
        ArtifactError: an architecture, normalisation, key or shape that cannot be honoured, by name.
    """
    path, config = folder / CONFIG, read_config(folder / CONFIG)
    check_names(config, {"d_in", "d_sae"}, _READ | _OF_TRAINING | _BEFORE_6, path)
    arch = _architecture(config, path)
    normalisation = config.get("normalize_activations") or "none"
    if normalisation != "none":
        raise refuse(path, "normalize_activations", normalisation, "it is not in the weights, and a decoder that "
                     "needs each record's own statistics is no dictionary of directions; fold it in SAELens first")
    if config.get("finetuning_scaling_factor"):
        raise refuse(path, "finetuning_scaling_factor", True, "SAELens dropped it in version 6; convert it there")
    tensors = read_tensors(folder / WEIGHTS)
    d, n_latents = config["d_in"], config["d_sae"]
    optional = {"topk_threshold"} if arch in ("batchtopk", "matryoshka_batchtopk") else set()
    if arch == "jumprelu" and "log_threshold" in tensors:  # checkpoints before version 6.45
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    check_names(tensors, {"W_enc", "W_dec", "b_dec", *_BIASES[arch]}, optional, folder / WEIGHTS)
    check_shapes(tensors, {"W_enc": (d, n_latents), "W_dec": (n_latents, d), "b_dec": (d,),
                           **dict.fromkeys(_BIASES[arch], (n_latents,)), "topk_threshold": ()}, folder / WEIGHTS)
    tensors = {name: value.float() for name, value in tensors.items()}
    if config.get("rescale_acts_by_decoder_norm", False):
        _fold_decoder_norm(tensors)
    return _foreign(arch, tensors, config)


def _architecture(config: dict[str, Any], path: Path) -> str:
    arch = str(config.get("architecture", "standard"))
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if activation == "topk" and arch == "standard":  # before version 6
        config["k"], arch = (config.get("activation_fn_kwargs") or {}).get("k"), "topk"
    elif activation not in ("relu", arch):
        raise refuse(path, "activation_fn", activation, "only relu and topk are")
    if arch not in _BIASES:
        raise refuse(path, "architecture", arch, f"only {', '.join(_BIASES)} are")
    if arch not in ("standard", "gated", "jumprelu") and not config.get("k"):
        raise ArtifactError(f"{path}: missing key k")
    return arch


def _fold_decoder_norm(tensors: dict[str, Tensor]) -> None:
    norm_K = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
    tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norm_K, tensors["b_enc"] * norm_K
    tensors["W_dec"] = tensors["W_dec"] / norm_K[:, None]


def _foreign(arch: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> Foreign:
    bias, more, k = tensors["b_gate" if arch == "gated" else "b_enc"], {}, None
    ours = {"matryoshka_batchtopk": "batchtopk"}.get(arch, arch)
    if arch == "gated":
        more = {"r_mag": tensors["r_mag"], "b_mag": tensors["b_mag"]}
    elif arch == "jumprelu":
        more = {"threshold": tensors["threshold"].clamp(min=0)}  # it also applies ReLU
    elif ours == "batchtopk":
        more = {"threshold_M": tensors.get("topk_threshold", torch.zeros(())).expand(3)}
    if ours in ("topk", "batchtopk"):
        k = max(1, round(config["k"]))
    return Foreign(ours, tensors["W_enc"].T, tensors["W_dec"], bias, tensors["b_dec"],
                   bool(config.get("apply_b_dec_to_input", True)), k, more)
