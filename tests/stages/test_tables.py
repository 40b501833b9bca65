"""The paper's tables from artifacts: nothing is a number that no artifact holds."""

from __future__ import annotations

import csv
import json

import pytest

from cmma.stages import tables_plan
from cmma.stages.paper_tables import TABLES
from cmma.stages.tables_plan import read_plan

TINY = {
    "common": ["dataset.n_train=60", "dataset.n_balanced=20", "dataset.n_counter=6", "dataset.n_pairs=4",
               "sae.n_latents=128", "optim.steps=30", "optim.batch=256", "interpret.n_samples=20",
               "interpret.max_pages=2", "interpret.n_bootstrap=50", "launch.threads=1"],
    "runs": {"specialisation": {"stage": "interpret", "sweep": {"model": ["toy_llava"], "seed": [0, 1]},
                                "own": {"toy_llava": ["activations.layers=[3]"]}}},
}  # fmt: skip


@pytest.mark.parametrize(("scale", "words"), [("toy", []), ("paper", ["dataset.path=somewhere"])])
def test_every_run_of_a_plan_composes_and_every_table_has_one(scale, words):
    plan = read_plan(scale, words)
    assert {table.run for table in TABLES.values()} == set(plan)
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
    assert {file.suffix for file in (tmp_path / "tables").iterdir()} == {".md", ".tex", ".csv", ".json"}


def test_table_one_is_the_mean_over_its_artifacts(command, tmp_path, monkeypatch):
    monkeypatch.setattr(tables_plan, "load_group", lambda group, name: TINY)
    status, printed = command(tmp_path, "tables", "name=table1")
    assert status == 0, printed
    summaries = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))["summary"]["shares"]
        for file in (tmp_path / "artifacts" / "interpret").glob("*/manifest.json")
    }
    assert len(summaries) == 2
    with (tmp_path / "tables" / "table1.csv").open(encoding="utf-8") as handle:
        ours = {row["column"]: row for row in csv.DictReader(handle) if row["row"] == "toy_llava"}
    for column, share in (("visual", "visual"), ("cross-modal", "cross_modal"), ("dead", "dead")):
        a, b = (shares[share] for shares in summaries.values())
        assert float(ours[column]["value"]) == pytest.approx((a + b) / 2)
        assert float(ours[column]["error"]) == pytest.approx(abs(a - b) / 2**0.5)  # SD of two
        assert set(ours[column]["artifact"].split()) == set(summaries)
    again = command(tmp_path, "tables", "name=table1")[1]
    assert "finished" not in again
    assert again.count("done before") > 0


def test_a_table_that_is_not_there_is_one_line(command, tmp_path):
    status, printed = command(tmp_path, "tables", "name=tabel1")
    assert status == 2
    assert "there is no table tabel1; did you mean table1?" in printed
    assert "Traceback" not in printed
