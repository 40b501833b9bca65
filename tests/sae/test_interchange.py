"""Genuine saves of other libraries give those libraries' own latents and reconstructions; ours go out and come back.

`tests/sae/data` was written by sparsify and dictionary_learning themselves (`scripts/make_foreign_saes.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmma.errors import ArtifactError, ConfigError
from cmma.modality import Modality
from cmma.sae import ImportConfig, import_sae, load_sae, save_sae, save_saelens, save_sparsify
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.mesh import Mesh
from cmma.sae.objective.objective import Objective
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser

DATA = Path(__file__).parent / "data"
FOREIGN = sorted(path.parent.name for path in DATA.glob("*/expected.safetensors"))
D, K = 16, 64


def assert_same(sae: SparseAutoencoder, records_ND: Tensor, latents_NK: Tensor, reconstruction_ND: Tensor) -> None:
    """Activations and reconstructions to 1e-4, and the very same active latents."""
    with torch.no_grad():
        ours_NK = sae.encode(records_ND)
        torch.testing.assert_close(sae.decode(ours_NK), reconstruction_ND, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours_NK, latents_NK, atol=1e-4, rtol=0)
    assert torch.equal(ours_NK > 0, latents_NK > 0)
    assert (latents_NK > 0).any()


def test_there_is_a_save_of_every_kind():
    assert {*FOREIGN} == {"sparsify", "sparsify_transcoder"} | {
        f"dictionary_learning_{kind}"
        for kind in ("standard", "april", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_dictionary_computes_what_its_library_computed(name):
    expected = load_file(DATA / name / "expected.safetensors")
    assert_same(load_sae(DATA / name), expected["records"], expected["latents"], expected["reconstruction"])


@pytest.mark.parametrize("name", FOREIGN)
def test_an_imported_dictionary_is_one_of_ours(tmp_path, name):
    sae = import_sae(ImportConfig(str(DATA), name), blocks=(D,))
    save_sae(sae, tmp_path)
    again = load_sae(tmp_path)
    assert again.config == sae.config
    expected = load_file(DATA / name / "expected.safetensors")
    assert_same(again, expected["records"], expected["latents"], expected["reconstruction"])
    modality_N = torch.arange(len(expected["records"])) % 2  # whatever they are, nothing is standardised
    assert torch.equal(again.encode(expected["records"], modality_N), again.encode(expected["records"]))


def test_a_decoder_is_never_renormalised():
    stored = torch.load(DATA / "dictionary_learning_standard" / "ae.pt", weights_only=True)["decoder.weight"]
    assert (stored.norm(dim=0) - 1).abs().max() > 0.1
    assert torch.equal(load_sae(DATA / "dictionary_learning_standard").feature_directions, stored.T)


@pytest.mark.parametrize("arch", ["standard", "topk"])
def test_losses_and_gradients_are_dictionary_learnings(arch):
    stored, sae = load_file(DATA / "losses.safetensors"), load_sae(DATA / f"dictionary_learning_loss_{arch}")
    weights = {"lambda1": 0.05} if arch == "standard" else {}
    objective = Objective(preset(arch, n_latents=K, k=sae.config.k, **weights), 0, Mesh())
    sae.requires_grad_(True)
    n = len(stored["records"])
    batch = RecordBatch(stored["records"], torch.zeros(n, dtype=torch.int8), torch.arange(n), torch.zeros(n))
    done = sae.training_pass(batch.acts_BD, None, batch)
    total = objective(batch.acts_BD, done.reconstruction_BD, done.latents, batch.modality_B, None).total
    total.backward()
    torch.testing.assert_close(total.detach(), stored[f"{arch}.loss"], atol=1e-5, rtol=1e-5)
    bias = "bias" if arch == "standard" else "b_dec"
    for ours, theirs in ((sae.W_enc.grad, "encoder.weight"), (sae.W_dec.grad.T, "decoder.weight"),
                         (sae.b_enc.grad, "encoder.bias"), (sae.b_pre.grad, bias)):
        torch.testing.assert_close(ours, stored[f"{arch}.{theirs}"], atol=1e-5, rtol=1e-5)


def ours(arch: str, standardiser: Standardiser | None = None, **config) -> SparseAutoencoder:
    sae = build_sae(preset(arch, n_latents=K, k=6, **config), D, standardiser or pooled(), seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=g) * 0.1)
    return sae


def pooled() -> Standardiser:
    """The same affine map for every modality."""
    mean_D = torch.linspace(-1, 1, D)
    return Standardiser(mean_D.expand(3, D), torch.full((3, D), 2.5), (D,))


def apart() -> Standardiser:
    """Another map for each."""
    mean_MD = torch.tensor([[1.0], [-2.0], [0.5]]).expand(3, D)
    return Standardiser(mean_MD, torch.tensor([[2.0], [0.5], [1.0]]).expand(3, D), (D,))


def records() -> Tensor:
    return torch.randn(40, D, generator=torch.Generator().manual_seed(7)) * 3


EXPORTED = [(save_saelens, arch) for arch in ("msae", "standard", "gated", "jumprelu", "topk", "batchtopk",
                                              "matryoshka", "group_sparse")] + [(save_sparsify, "topk")]


@pytest.mark.parametrize(("save", "arch"), EXPORTED)
def test_what_is_exported_and_read_again_computes_the_same(tmp_path, save, arch):
    sae = ours(arch)
    save(sae, tmp_path / "out")
    with torch.no_grad():
        latents_NK = sae.encode(records())
        assert_same(load_sae(tmp_path / "out"), records(), latents_NK, sae.decode(latents_NK))


@pytest.mark.parametrize("modality", [Modality.VISUAL, Modality.TEXTUAL])
def test_one_modality_is_exported_by_its_own_map(tmp_path, modality):
    sae = ours("batchtopk", apart(), adaptive_sparsity=True, target_l0_visual=9.0, target_l0_textual=4.0)
    with pytest.raises(ArtifactError, match="not one affine map"):
        save_saelens(sae, tmp_path)
    save_saelens(sae, tmp_path, modality)
    modality_N = torch.full((40,), int(modality))
    with torch.no_grad():
        latents_NK = sae.encode(records(), modality_N)
        assert_same(load_sae(tmp_path), records(), latents_NK, sae.decode(latents_NK, modality_N))


def test_what_has_no_place_in_a_format_is_refused_by_name(tmp_path):
    for sae, save, message in (
        (ours("topk", attention=True), save_saelens, "cross-modal attention"),
        (ours("sparc"), save_saelens, "sae.arch=sparc"), (ours("msae"), save_sparsify, "sae.arch=msae"),
        (ours("topk", adaptive_sparsity=True, target_l0_visual=3.0), save_sparsify, "another number of latents"),
    ):
        with pytest.raises(ArtifactError, match=message):
            save(sae, tmp_path)
        assert not list(tmp_path.iterdir())


SPARSIFY, LEARNING = "sparsify", "dictionary_learning_topk"


def reconfigure(folder: Path, file: str = "cfg.json", **changes) -> None:
    path = folder / file
    config = json.loads(path.read_text())
    config.get("trainer", config).update(changes)
    path.write_text(json.dumps(config))


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_file(folder / "sae.safetensors") | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "sae.safetensors")


def repickle(folder: Path, change) -> None:
    tensors = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(change(tensors), folder / "ae.pt")


DAMAGES = {
    "unknown key W_skip": (SPARSIFY, lambda f: rewrite(f, W_skip=torch.zeros(D, D))),
    "missing key b_dec": (SPARSIFY, lambda f: rewrite(f, b_dec=None)),
    r"W_dec has shape \[64, 15\], expected \[64, 16\]": (SPARSIFY, lambda f: rewrite(f, W_dec=torch.zeros(K, 15))),
    "W_dec holds values that are not finite": (SPARSIFY, lambda f: rewrite(f, W_dec=torch.full((K, D), torch.nan))),
    "activation=groupmax is not supported": (SPARSIFY, lambda f: reconfigure(f, activation="groupmax")),
    "skip_connection=True is not supported": (SPARSIFY, lambda f: reconfigure(f, skip_connection=True)),
    "unknown key normalise": (SPARSIFY, lambda f: reconfigure(f, normalise=True)),
    "k=65 is larger": (SPARSIFY, lambda f: reconfigure(f, k=65)),
    "is missing, damaged or more than tensors": (SPARSIFY, lambda f: (f / "sae.safetensors").write_bytes(b"short")),
    "there is no sae.json": (SPARSIFY, lambda f: (f / "cfg.json").unlink()),
    "dict_class=IdentityDict is not supported": (
        LEARNING, lambda f: reconfigure(f, "config.json", dict_class="IdentityDict")),
    "trainer.dict_size=65, but ae.pt has 64": (LEARNING, lambda f: reconfigure(f, "config.json", dict_size=65)),
    "unknown key ghost": (LEARNING, lambda f: repickle(f, lambda t: t | {"ghost": torch.zeros(1)})),
    "missing key encoder.bias": (
        LEARNING, lambda f: repickle(f, lambda t: {name: t[name] for name in t if name != "encoder.bias"})),
    "more than tensors": (LEARNING, lambda f: repickle(f, lambda t: t | {"path": Path("x")})),
    "not a dictionary of tensors": (LEARNING, lambda f: repickle(f, lambda t: [1, 2])),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, message):
    name, damage = DAMAGES[message]
    folder = tmp_path / name
    shutil.copytree(DATA / name, folder)
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)


def saelens_folder(folder: Path, tensors: dict[str, Tensor] | None = None, **changes) -> Path:
    save_saelens(ours("topk"), folder)
    reconfigure(folder, **changes)
    save_file(load_file(folder / "sae_weights.safetensors") | (tensors or {}), folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "normalize_activations=layer_norm is not supported"),
        ({"normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
        ({"architecture": "temporal"}, "architecture=temporal is not supported"),
        ({"activation_fn": "tanh-relu"}, "activation_fn=tanh-relu is not supported"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"), ({"k": None}, "missing key k"),
        ({"curvature": 3}, "unknown key curvature"), ({"d_in": 17}, "W_enc has shape"),
        ({"tensors": {"b_mag": torch.zeros(K)}}, "unknown key b_mag"),
    ],
)
def test_saelens_settings_that_cannot_be_honoured_are_named(tmp_path, changes, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        load_sae(saelens_folder(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_the_older_configuration_of_saelens_is_read(tmp_path):
    """Before version 6 the activation had its own name and arguments, and there was no `architecture`."""
    folder = saelens_folder(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    expected_NK = load_sae(folder).encode(records())
    old = {name: config[name] for name in ("d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input")}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}, "hook_name": "blocks.3.hook_resid_post",
            "normalize_activations": None, "finetuning_scaling_factor": False}
    (folder / "cfg.json").write_text(json.dumps(old))
    assert torch.equal(load_sae(folder).encode(records()), expected_NK)


def test_sources_that_are_not_there_are_named(tmp_path, monkeypatch):
    for source, more, message in (
        ("/no/such/folder", {}, "there is no folder"), (DATA, {}, r"it holds dictionary_learning_april, .*subfolder="),
        (DATA, {"subfolder": "layer9"}, "has no folder layer9"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_sae(source, **more)
    with pytest.raises(ConfigError, match=r"imported\.source is not set"):
        import_sae(ImportConfig())
    for blocks, width in (((24,), "24"), ((8, 8), r"8 \+ 8")):  # pair views are not the vectors of one space
        with pytest.raises(ConfigError, match=f"width 16, and those of this model and layer have width {width}"):
            import_sae(ImportConfig(str(DATA / SPARSIFY)), blocks)


def test_without_the_hub_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"someone/dictionary is neither a folder nor .* from the hub") as caught:
        load_sae("someone/dictionary", subfolder="layers.3", revision="0123abc")
    assert "\n" not in str(caught.value)


def test_a_repository_is_fetched_by_its_revision_and_no_more_than_one_dictionary(monkeypatch):
    asked = {}

    def snapshot_download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(DATA)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    sae = load_sae("someone/dictionary", subfolder=SPARSIFY, revision="0123abc")
    assert sae.config.arch == "topk"
    assert (asked["repository"], asked["revision"]) == ("someone/dictionary", "0123abc")
    assert "sparsify/sae.safetensors" in asked["patterns"]
    assert all(pattern.startswith("sparsify/") for pattern in asked["patterns"])
