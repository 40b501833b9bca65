"""What the readers of all formats share: strict keys and shapes, and the step from tensors to a dictionary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmma.artifacts.files import read_json
from cmma.errors import ArtifactError, ConfigError
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import CLASSES
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser


@dataclass(frozen=True)
class Foreign:
    """A dictionary of another library, in the notation of this one.

    Attributes:
        arch: which of ours computes the same.
        W_enc_KD, W_dec_KD, b_enc_K, b_dec_D: encoder, decoder and their biases.
        subtracts: whether b_dec is subtracted before encoding.
        k: latents kept, where that is what the architecture does.
        more: other parameters and buffers of our class.
    """

    arch: str
    W_enc_KD: Tensor
    W_dec_KD: Tensor
    b_enc_K: Tensor
    b_dec_D: Tensor
    subtracts: bool = True
    k: int | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def build(self, path: Path) -> SparseAutoencoder:
        """The dictionary, on records as they are. Its features keep the norms that they have.

        Raises:
            ArtifactError: shapes that do not belong together, or values that are not finite. `path` is named.
        """
        n_latents, d = self.W_enc_KD.shape
        # Ours subtracts b_pre: W(x − b) + (c + W b) is W x + c. A gated encoder has a second bias, of e^r W x.
        shift_K = self.W_enc_KD.double() @ self.b_dec_D.double() * (not self.subtracts)
        biases = {"b_enc": self.b_enc_K.double() + shift_K}
        if self.arch == "gated":
            biases["b_mag"] = self.more["b_mag"].double() + self.more["r_mag"].double().exp() * shift_K
        try:
            config = preset(self.arch, n_latents=n_latents, **({} if self.k is None else {"k": self.k}))
        except ConfigError as error:
            raise ArtifactError(f"{path}: {error}") from error
        standardiser = Standardiser.identity((d,))
        tensors = {"W_enc": self.W_enc_KD, "W_dec": self.W_dec_KD, "b_pre": self.b_dec_D, **self.more, **biases}
        tensors |= {f"standardiser.{name}": value for name, value in standardiser.state_dict().items()}
        with torch.device("meta"):
            sae = CLASSES[self.arch](config, d, Standardiser.identity((d,)))
        for name, expected in sae.state_dict().items():
            if not tensors[name].isfinite().all():
                raise ArtifactError(f"{path}: {name} holds values that are not finite")
            if tensors[name].shape != expected.shape:
                raise ArtifactError(f"{path}: {name} has shape {list(tensors[name].shape)}, expected "
                                    f"{list(expected.shape)}")
        sae.load_state_dict({name: value.float().contiguous() for name, value in tensors.items()}, assign=True)
        return sae.eval()


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ArtifactError when it is none."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return config


def check_names(found: Collection[str], needed: Collection[str], optional: Collection[str], path: Path) -> None:
    """All needed names and none but those and the optional ones. Raises ArtifactError naming the first wrong one."""
    if unknown := sorted({*found} - {*needed} - {*optional}):
        raise ArtifactError(f"{path}: unknown key {unknown[0]}")
    if missing := sorted({*needed} - {*found}):
        raise ArtifactError(f"{path}: missing key {missing[0]}")


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises ArtifactError naming the first tensor of another shape."""
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ArtifactError(f"{path}: {name} has shape {list(tensors[name].shape)}, expected {list(shape)}")


def refuse(path: Path, key: str, value: Any, why: str) -> ArtifactError:
    """The error for a setting that this package cannot honour."""
    return ArtifactError(f"{path}: {key}={value} is not supported: {why}")
