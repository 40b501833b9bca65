"""sparsify: `cfg.json` and `sae.safetensors` (read against eai-sparsify 1.3)."""

from __future__ import annotations

from pathlib import Path

from cmma.artifacts.tensors import read_tensors
from cmma.errors import ArtifactError
from cmma.sae.interchange.foreign import Foreign, check_names, check_shapes, read_config, refuse

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_OPTIONAL = {"activation", "expansion_factor", "normalize_decoder", "num_latents", "multi_topk", "skip_connection",
             "transcode", "signed"}


def read_sparsify(folder: Path) -> Foreign:
    """A TopK dictionary that sparsify saved, for example a folder of `lmms-lab/llama3-llava-next-8b-hf-sae-131k`.

    A transcoder (`transcode`) encodes its input as it is: b_dec is not subtracted from it.

    Raises:
        ArtifactError: a setting, key or shape that cannot be honoured, by name.
    """
    path, config = folder / CONFIG, read_config(folder / CONFIG)
    check_names(config, {"d_in", "k"}, _OPTIONAL, path)
    if config.get("activation", "topk") != "topk":
        raise refuse(path, "activation", config["activation"], "only topk is")
    for key, why in (("skip_connection", "a linear bypass is no dictionary"), ("signed", "latents are not negative")):
        if config.get(key):
            raise refuse(path, key, config[key], why)
    tensors = read_tensors(folder / WEIGHTS)
    check_names(tensors, {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}, set(), folder / WEIGHTS)
    d = config["d_in"]
    n_latents = config.get("num_latents") or d * config.get("expansion_factor", 32)
    check_shapes(tensors, {"encoder.weight": (n_latents, d), "encoder.bias": (n_latents,), "W_dec": (n_latents, d),
                           "b_dec": (d,)}, folder / WEIGHTS)
    if not isinstance(config["k"], int) or config["k"] < 1:
        raise ArtifactError(f"{path}: k={config['k']} is not a number of latents")
    return Foreign("topk", tensors["encoder.weight"], tensors["W_dec"], tensors["encoder.bias"], tensors["b_dec"],
                   subtracts=not config.get("transcode", False), k=config["k"])
