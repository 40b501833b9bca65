"""A dictionary that another library trained, through every stage; what cannot be honoured is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cmma.artifacts.store import Artifact, list_artifacts
from cmma.models.spec import model_folder
from cmma.sae import preset, save_saelens
from cmma.sae.architectures.registry import build_sae
from cmma.sae.standardiser import Standardiser

SPARSIFY = Path(__file__).parents[1] / "sae" / "data" / "sparsify"
WIDTH, N_LATENTS = 32, 48
TINY = [
    "model.weights=random", "model.architecture=llava-tiny", "model.n_layers=4", "activations.layers=[1]",
    "dataset.n_train=48", "dataset.n_balanced=40", "dataset.n_counter=8", "dataset.n_pairs=8",
    "interpret.n_samples=16", "interpret.max_pages=4", "interpret.n_bootstrap=50", "run.traces=[noise]",
    "run.interventions=[ablate]", "trace.max_samples=2", "trace.noise.draws=1", "intervention.max_samples=6",
    "intervention.n_controls=2", "intervention.selection.n_samples=6", "intervention.selection.verify=4",
    "intervention.n_features=2", "intervention.max_new_tokens=4", "cmig.n_features=4", "cmig.n_samples=6",
    "cmig.n_selection_samples=6", "cmig.random_graphs=2", "cmig.power_law_draws=5", "metric.n_samples=8",
    "metric.n_questions=8", "metric.max_new_tokens=4", "metric.batch_size=4", "metric.n_bootstrap=50",
    "sae_metric.splice_samples=8", "sae_metric.batch_size=8", "sae_metric.n_bootstrap=50",
    "launch.threads=1",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not list(model_folder("builtin:toy_clip").glob("*.safetensors")), reason="toy_clip's weights are not here")


@pytest.fixture(scope="module")
def saelens_save(tmp_path_factory) -> Path:
    """A TopK dictionary as SAELens saves it; `tests/sae` reads saves of its own with SAELens and ours."""
    sae = build_sae(preset("topk", n_latents=N_LATENTS, k=8), WIDTH, Standardiser.identity((WIDTH,)))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape) * WIDTH**-0.5)
    folder = tmp_path_factory.mktemp("saelens") / "save"
    save_saelens(sae, folder)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, command, saelens_save) -> Path:
    """Outputs of a chain whose dictionary is imported."""
    folder = tmp_path_factory.mktemp("outputs")
    status, printed = command(folder, "run", *TINY, f"imported.source={saelens_save}")
    assert status == 0, printed
    return folder


def dictionary(outputs: Path) -> Artifact:
    (found,) = list_artifacts(outputs, "train-sae")
    return found


def test_every_later_stage_takes_it(outputs):
    made = {artifact.stage: artifact for artifact in list_artifacts(outputs)}
    assert {"interpret", "intervene", "build-cmig", "evaluate-sae", "evaluate", "report"} <= {*made}
    assert made["interpret"].manifest["parents"] == {"train-sae": dictionary(outputs).key}
    assert len(made["interpret"].read_table("features.parquet")) == N_LATENTS


def test_it_computes_what_saelens_computes_and_is_measured_on_held_out_records(outputs, saelens_save):
    theirs = load_file(saelens_save / "sae_weights.safetensors")
    cached, summary = list_artifacts(outputs, "cache-activations")[0], dictionary(outputs).summary
    samples: pd.DataFrame = cached.read_table("samples.parquet")
    held_out = torch.from_numpy(samples["held_out"].to_numpy(copy=True))
    shards = [load_file(path) for path in cached.path("shards").glob("*.safetensors")]
    records_ND = torch.cat([shard["layer.1"][held_out[shard["sample"]]] for shard in shards])
    pre_NK = (records_ND - theirs["b_dec"]) @ theirs["W_enc"] + theirs["b_enc"]
    largest = pre_NK.topk(8, dim=1)
    latents_NK = torch.zeros_like(pre_NK).scatter(1, largest.indices, largest.values.relu())
    error = (latents_NK @ theirs["W_dec"] + theirs["b_dec"] - records_ND).square().sum()
    variance = (records_ND - records_ND.mean(0)).square().sum()
    assert summary["fvu"] == pytest.approx(float(error / variance), rel=1e-4)
    assert summary["l0"] == pytest.approx(float((latents_NK > 0).sum(1).float().mean()))
    assert summary["dead_fraction"] == pytest.approx(float((latents_NK == 0).all(0).float().mean()))


def test_its_own_name_and_its_place_do_not_matter(outputs, saelens_save, tmp_path, command):
    """`import-sae source=` is the same artifact; so is a copy of the files, whatever `optim` and `sae` say."""
    key = dictionary(outputs).key
    moved = shutil.copytree(saelens_save, tmp_path / "moved")
    for words in (["import-sae", f"source={saelens_save}"], ["import-sae", f"source={moved}"],
                  ["train-sae", f"imported.source={tmp_path}", "imported.subfolder=moved", "optim.lr=1", "sae=topk"]):
        status, printed = command(outputs, words[0], *TINY, *words[1:])
        assert (status, printed.split()[:4]) == (0, ["train-sae", key, "done", "before:"]), printed


def test_tools_show_it(outputs, saelens_save, command):
    key = dictionary(outputs).key
    assert all(text in command(outputs, "ls", "train-sae")[1] for text in (key, "topk", str(N_LATENTS)))
    assert f"source: {saelens_save}" in command(outputs, "show", key)[1]
    assert command(outputs, "verify", key)[0] == 0


def test_what_a_class_is_counts_for_interpret_alone(outputs, saelens_save, command):
    """tau tells classes apart. A trained dictionary's key has it; the key of an imported one has not."""
    status, printed = command(outputs, "intervene", *TINY, f"imported.source={saelens_save}", "sae.tau=0.2")
    assert status == 3
    assert "intervene needs interpret" in printed
    assert len(list_artifacts(outputs, "train-sae")) == 1


def changed(folder: Path, copy: Path, **changes) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "cfg.json").read_text()) | changes
    (copy / "cfg.json").write_text(json.dumps(config))
    return copy


def test_what_cannot_be_honoured_is_refused_in_one_line(outputs, saelens_save, tmp_path, command):
    normalised = changed(saelens_save, tmp_path / "normalised", normalize_activations="layer_norm")
    unknown = changed(saelens_save, tmp_path / "unknown", curvature=3)
    for words, expected in (
        ([f"source={SPARSIFY}"], "reads records of width 16, and those of this model and layer have width 32"),
        ([f"source={normalised}"], "normalize_activations=layer_norm is not supported"),
        ([f"source={unknown}"], "unknown key curvature"),
        ([f"source={tmp_path}"], "it holds normalised, unknown; name one with subfolder="),
        (["source=/no/such/folder"], "there is no folder /no/such/folder"),
        ([], "import-sae needs source=FOLDER"),
    ):
        status, printed = command(outputs, "import-sae", *TINY, *words)
        assert (status, len(printed.splitlines())) == (2, 1), printed
        assert expected in printed


def test_the_short_words_belong_to_import_sae(tmp_path, command):
    status, printed = command(tmp_path, "interpret", "subfolder=layers.3")
    assert status == 2
    assert "there is no key subfolder; did you mean imported.subfolder?" in printed
