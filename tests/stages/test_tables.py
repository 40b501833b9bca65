"""The paper's tables from artifacts: nothing is a number that no artifact holds."""

from __future__ import annotations

import csv
import json
import re

import pytest

from cmma.artifacts.files import read_json
from cmma.stages import tables_plan
from cmma.stages.paper_tables import TABLES
from cmma.stages.tables_jobs import bring
from cmma.stages.tables_plan import read_plan

TINY = {
    "common": ["dataset.n_train=60", "dataset.n_balanced=60", "dataset.n_counter=6", "dataset.n_pairs=4",
               "sae.n_latents=128", "optim.steps=30", "optim.batch=256", "interpret.n_samples=20",
               "interpret.max_pages=2", "interpret.n_bootstrap=50", "launch.threads=1"],
    "runs": {
        "specialisation": {"stage": "interpret", "sweep": {"model": ["toy_llava"], "seed": [0, 1]},
                           "own": {"toy_llava": ["activations.layers=[3]"]}},
        "graph": {"stage": "build-cmig", "sweep": {"model": ["toy_llava"]},
                  "with": ["activations.layers=[3]", "cmig.n_features=3", "cmig.n_samples=6",
                           "cmig.n_selection_samples=6", "cmig.random_graphs=3", "cmig.power_law_draws=10"]},
        "ablation": {"stage": "benchmark", "with": ["benchmark.task=planted", "benchmark.seeds=2",
                                                    "benchmark.scale=0.01", "benchmark.method=[pca]"]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(command, tmp_path_factory):
    """What was printed, and the outputs folder."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_plan, "load_group", lambda group, name: TINY)
        status, printed = command(folder, "tables", "name=table1,cmig,ablation", "tables.jobs=1")
        assert status == 0, printed
        again = command(folder, "tables", "name=table1")[1]
    return folder, again


@pytest.mark.parametrize(("scale", "words"), [("toy", []), ("paper", ["dataset.path=somewhere"])])
def test_every_run_of_a_plan_composes_and_every_table_has_one(scale, words):
    plan = read_plan(scale, words)
    assert {run for table in TABLES.values() for run in table.runs} == set(plan)
    assert all(runs for runs in plan.values())


def test_what_is_not_there_is_not_measured_and_names_its_command(command, tmp_path):
    status, printed = command(tmp_path, "tables", "tables.make=false")
    assert status == 0, printed
    for file in (tmp_path / "tables").glob("*.json"):
        table = json.loads(file.read_text(encoding="utf-8"))
        for row in table["rows"]:
            for cell in row["cells"]:
                assert row["source"] == "paper" or cell["value"] is None or not cell["artifact"]
    assert "not measured (`cmma tables name=phases scale=toy`)" in printed
    assert {file.suffix for file in (tmp_path / "tables").iterdir()} == {".md", ".tex", ".csv", ".json", ".html"}
    assert "not measured: needs people" in (tmp_path / "tables" / "interpretability-toy_llava.md").read_text("utf-8")


def test_table_one_is_the_mean_over_its_artifacts(made):
    folder, again = made
    summaries = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))["summary"]["shares"]
        for file in (folder / "artifacts" / "interpret").glob("*/manifest.json")
    }
    assert len(summaries) == 2
    with (folder / "tables" / "table1.csv").open(encoding="utf-8") as handle:
        ours = {row["column"]: row for row in csv.DictReader(handle) if row["row"] == "toy_llava"}
    for column, share in (("visual", "visual"), ("cross-modal", "cross_modal"), ("dead", "dead")):
        a, b = (shares[share] for shares in summaries.values())
        assert float(ours[column]["value"]) == pytest.approx((a + b) / 2)
        assert float(ours[column]["error"]) == pytest.approx(abs(a - b) / 2**0.5)  # SD of two
        half_width = 12.7062 * abs(a - b) / 2  # t of 0.975 with one degree of freedom, times SD / √2
        assert float(ours[column]["high"]) == pytest.approx((a + b) / 2 + half_width, rel=1e-5)
        assert set(ours[column]["artifact"].split()) == set(summaries)
        assert (ours[column]["seeds"], ours[column]["device"]) == ("0, 1", "cpu")
    assert "finished" not in again


def test_several_jobs_at_once_make_what_one_makes_and_one_failure_stops_no_other(command, tmp_path, capsys):
    words = ("dataset.n_train=4", "dataset.n_balanced=4", "dataset.n_counter=4", "dataset.n_pairs=2")
    plan = {"common": [], "runs": {"data": {"stage": "prepare-data", "sweep": {"dataset.seed": [0, 1]}, "with": words}}}
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "captions.csv").write_text("file,caption\nnone.png,a picture\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_plan, "load_group", lambda group, name: plan)
        some = read_plan("toy", [f"paths.outputs={tmp_path / 'outputs'}"])["data"]
        bad = read_plan("toy", ["dataset=folder", f"dataset.path={tmp_path / 'images'}",
                                f"paths.outputs={tmp_path / 'outputs'}"])["data"][:1]
    bring([*bad, *some], at_once=2)
    assert all(each.artifact.finished for each in some)
    assert not bad[0].artifact.finished
    assert "prepare-data: " in capsys.readouterr().err
    assert command(tmp_path / "alone", "prepare-data", *words, "dataset.seed=1")[0] == 0
    alone, = (tmp_path / "alone" / "artifacts" / "prepare-data").iterdir()
    assert alone.name == some[1].artifact.key
    made, again = (read_json(folder / "manifest.json")["files"] for folder in (some[1].artifact.folder, alone))
    assert made.pop("resolved.yaml") != again.pop("resolved.yaml")  # where it lies, and how many threads it had
    assert made == again


def test_every_key_in_every_cell_is_explained_with_command_and_configuration(made):
    folder, _ = made
    page = (folder / "tables" / "provenance.html").read_text(encoding="utf-8")
    places = set(re.findall(r'id="([^"]+)"', page))
    keys = {
        key for file in (folder / "tables").glob("*.json")
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]
        for cell in row["cells"] for key in cell["artifact"].split()
    }
    assert len(keys) == 4  # two interpret, a graph, a benchmark
    assert keys <= places
    parents = {path.parent.name for stage in ("prepare-data", "cache-activations", "train-sae")
               for path in (folder / "artifacts" / stage).glob("*/manifest.json")}
    assert len(parents) == 4
    assert parents <= places
    for words in ("cmma train-sae", "seed=1", "cmma build-cmig", "cmig.n_features=3", "cmma benchmark", "n_train: 60"):
        assert words in page
    for name in (folder / "tables").glob("*.html"):
        assert set(re.findall(r'href="provenance\.html#([^"]+)"', name.read_text(encoding="utf-8"))) <= places


def test_what_was_measured_but_is_not_defined_is_not_called_unmeasured(made):
    """Three features over six samples leave no triangles and no power law."""
    folder, _ = made
    cells = [row["cells"][0] for row in json.loads((folder / "tables" / "cmig.json").read_text("utf-8"))["rows"]]
    assert all(cell["value"] is not None and cell["artifact"] for cell in cells)
    assert "undefined" in [cell["value"] for cell in cells]


def test_the_models_of_the_tables_have_their_own_pages_with_the_graph(made):
    folder, _ = made
    report = folder / "tables" / "models" / "toy_llava"
    assert len(list((report / "features").glob("*.html"))) == 2  # interpret.max_pages
    (graph,) = (folder / "artifacts" / "build-cmig").iterdir()
    provenance = (report / "provenance.html").read_text(encoding="utf-8")
    assert f'id="{graph.name}"' in provenance
    assert "cmig.n_features=3" in provenance  # the command that made it, not that of the feature pages
    assert 'href="../../index.html"' in (report / "index.html").read_text(encoding="utf-8")


def test_a_table_that_is_not_there_is_one_line(command, tmp_path):
    status, printed = command(tmp_path, "tables", "name=tabel1")
    assert status == 2
    assert "there is no table tabel1; did you mean table1?" in printed
    assert "Traceback" not in printed
