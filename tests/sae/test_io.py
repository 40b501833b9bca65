"""Files of a dictionary: what is written comes back, and what is damaged is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmma.artifacts.files import sha256_of
from cmma.errors import ArtifactError
from cmma.sae import load_sae
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import ARCHITECTURES, preset
from cmma.sae.io import save_sae
from cmma.sae.standardiser import Standardiser

ONE_SPACE = ("msae_decoders", "vl_sae")  # do not read pair views


def saved(folder: Path, arch: str = "msae", **config) -> Path:
    present_MD = torch.tensor([[1.0] * 3 + [0.0] * 2, [0.0] * 3 + [1.0] * 2, [1.0] * 5])
    standardiser = Standardiser(torch.randn(3, 5) * present_MD, present_MD * 2, (3, 2))
    if arch in ONE_SPACE:
        standardiser = Standardiser(torch.randn(3, 5), torch.full((3, 5), 2.0), (5,))
    sae = build_sae(preset(arch, n_latents=12, **{"k": 3, **config}), 5, standardiser, seed=4)
    save_sae(sae, folder)
    return folder


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("attention", [False, True])
def test_a_saved_dictionary_comes_back_to_the_bit(tmp_path, arch, attention):
    folder = saved(tmp_path, arch, attention=attention, attention_rank=2)
    one, two = load_sae(folder), load_sae(str(folder))
    assert one.config == preset(arch, n_latents=12, k=3, attention=attention, attention_rank=2)
    assert one.standardiser.blocks == ((5,) if arch in ONE_SPACE else (3, 2))
    acts_BD, modality_B = torch.randn(7, 5), torch.arange(7) % 3
    assert torch.equal(one(acts_BD, modality_B).reconstruction_BD, two(acts_BD, modality_B).reconstruction_BD)
    assert {name: value.tolist() for name, value in one.state_dict().items()} == {
        name: value.tolist() for name, value in load_file(folder / "sae.safetensors").items()}
    assert one.W_enc.requires_grad
    assert not list(folder.glob("*.tmp"))


def rewrite(folder: Path, change) -> None:
    """Change the tensors and make the description agree with the new file."""
    tensors = load_file(folder / "sae.safetensors")
    change(tensors)
    save_file(tensors, folder / "sae.safetensors")
    redescribe(folder, sha256=sha256_of(folder / "sae.safetensors"))


def redescribe(folder: Path, **changes) -> None:
    path = folder / "sae.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "b_enc has shape": lambda f: rewrite(f, lambda t: t.update(b_enc=torch.zeros(11))),
    "W_dec holds values that are not finite": lambda f: rewrite(f, lambda t: t["W_dec"].view(-1)[3].fill_(math.nan)),
    "unknown key W_gate": lambda f: rewrite(f, lambda t: t.update(W_gate=torch.zeros(1))),
    "missing key b_pre": lambda f: rewrite(f, lambda t: t.pop("b_pre")),
    "W_enc is torch.float64": lambda f: rewrite(f, lambda t: t.update(W_enc=t["W_enc"].double())),
    "sae.safetensors is damaged": lambda f: (f / "sae.safetensors").write_bytes(
        (f / "sae.safetensors").read_bytes()[:-1]),
    "schema 99": lambda f: redescribe(f, schema=99),
    "format is not": lambda f: redescribe(f, format="saelens"),
    "unknown key extra": lambda f: redescribe(f, extra=1),
    "unknown key lambda_1": lambda f: redescribe(
        f, config=json.loads((f / "sae.json").read_text())["config"] | {"lambda_1": 3}),
    "sae.arch": lambda f: redescribe(f, config=json.loads((f / "sae.json").read_text())["config"] | {"arch": "new"}),
    "blocks": lambda f: redescribe(f, blocks=[3, 3]),
    "cannot be read": lambda f: (f / "sae.json").write_text((f / "sae.json").read_text()[:-9]),
    "no sae.safetensors": lambda f: (f / "sae.safetensors").unlink(),
    "no sae.json": lambda f: (f / "sae.json").unlink(),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_refused_by_name(tmp_path, message):
    folder = saved(tmp_path)
    DAMAGES[message](folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)
