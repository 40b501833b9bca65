"""Tables say what every ± is, what is missing, and survive hostile text in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest

from cmma.report import references
from cmma.report.comparison import tables
from cmma.report.inputs import ReportInputs
from cmma.report.tables import Cell, Row, Source, Table, missing, text_cell


def sample_table() -> Table:
    return Table("t", "A & B", ("model", "x", "y"), (
        Row("a|b_c", (Cell(-3.14159, -4.0, -2.5, kind="95% CI", n=300, unit="%", digits=1), missing("cmma evaluate"))),
        Row("<script>", (Cell(0.5, error=0.1, kind="SE"), text_cell("50% & \\more")), "paper"),
    ))


def test_markdown_names_interval_kind_and_command():
    lines = sample_table().to_markdown().splitlines()
    assert lines[4] == r"| a\|b_c | −3.1% [−4.0, −2.5] (95% CI, n = 300) | not measured (`cmma evaluate`) |"
    assert lines[5].startswith("| <script> | 0.50 ± 0.10 (SE) |")


def test_latex_escapes_special_characters():
    latex = sample_table().to_latex()
    assert r"\caption{A \& B. }" in latex
    assert r"<script> & 0.50 $\pm$ 0.10$^{b}$ & 50\% \& \textbackslash{}more \\" in latex
    assert r"a|b\_c & $-$3.1\% [$-$4.0, $-$2.5]$^{a}$ & not measured \\" in latex
    assert r"$^{a}$ 95\% CI, n = 300; $^{b}$ SE; not measured: \texttt{cmma evaluate}." in latex


def test_every_form_says_what_keys_seeds_and_devices_are_behind_a_cell():
    """A mean over two artifacts beside a number of one, and a missing one that no command measures."""
    table = Table("t", "t", ("", "x"), (
        Row("mean", (Cell(0.5, artifact="aa11 bb22"),)), Row("single", (Cell(0.7, artifact="bb22"),)),
        Row("people", (Cell(kind="needs people"),)),
    ), sources=(Source("aa11", "interpret", "0", "cpu"), Source("bb22", "interpret", "1", "cuda")))
    markdown = table.to_markdown()
    assert "| mean | 0.50 <sup>1</sup> |" in markdown
    assert "| people | not measured: needs people |" in markdown
    both, one = "interpret aa11 bb22 (seeds 0, 1; cpu, cuda)", "interpret bb22 (seed 1; cuda)"
    assert f"From <sup>1</sup> {both}; <sup>2</sup> {one}." in markdown
    latex = table.to_latex()
    assert r"mean & 0.50$^{1}$ \\" in latex
    assert f"$^{{1}}$ {both}; $^{{2}}$ {one}." in latex
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [(row["artifact"], row["seeds"], row["device"]) for row in rows] == [
        ("aa11 bb22", "0, 1", "cpu, cuda"), ("bb22", "1", "cuda"), ("", "", "")]
    assert json.loads(table.to_json())["sources"][1] == {
        "key": "bb22", "stage": "interpret", "seeds": "1", "device": "cuda"}
    html = table.to_html("p.html#")
    assert 'href="p.html#aa11_bb22"' in html
    assert "seeds 0, 1; computed on cpu, cuda" in html
    assert "not measured: needs people" in html


def test_csv_keeps_full_precision_and_both_interval_kinds():
    rows = list(csv.DictReader(io.StringIO(sample_table().to_csv())))
    assert [(row["value"], row["kind"], row["n"]) for row in rows[:3]] == [
        ("-3.14159", "95% CI", "300"), ("", "", ""), ("0.5", "SE", "")]
    assert rows[1]["command"] == "cmma evaluate"


def test_json_round_trips_and_has_no_nan():
    table = Table("t", "t", ("", "x"), (Row("r", (Cell(float("nan"), low=float("inf")),)),))
    cell = json.loads(table.to_json())["rows"][0]["cells"][0]
    assert cell["value"] is None
    assert cell["low"] is None


def test_html_escapes_everything_and_marks_every_interval():
    html = sample_table().to_html("p.html#")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<sup>a</sup> 95% CI, n = 300" in html
    assert "<sup>b</sup> SE" in html
    assert "not measured: <code>cmma evaluate</code>" in html


def test_nan_is_not_measured_and_zero_is():
    assert not Cell(float("nan")).measured
    assert Cell(0.0).number() == "0.00"
    assert Cell(0.00002).number() == "2.0e−05"
    assert Cell(65536).number() == "65,536"


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="'short' has 1 cells, the header has 2"):
        Table("t", "t", ("", "x", "y"), (Row("short", (Cell(1),)),))


def test_reference_rows_of_table_1_sum_to_one_hundred():
    """Shares of one partition, to the rounding of four printed decimals."""
    for model, cells in references.TABLE_1.items():
        assert sum(cell.value for cell in cells.values()) == pytest.approx(100, abs=0.21), model


def test_what_the_papers_plus_minus_is_where_it_prints_an_interval():
    """Section 5.5.1: the interval is 1.96 × the ±, so the ± is a standard error. Section 5.6: it equals the ±."""
    for name in ("object", "attribute", "relation"):
        cell = references.HALLUCINATION[name]
        assert (cell.high - cell.low) / 2 == pytest.approx(1.96 * cell.error, abs=0.1)
    expert = references.INTERPRETABILITY["function identified by experts"]
    assert (expert.high - expert.low) / 2 == pytest.approx(expert.error)


def test_overall_row_of_table_2_is_the_mean_of_its_rows():
    for column in ("success rate", "precision", "semantic preservation"):
        parts = [cells[column].value for name, cells in references.CONTROL.items() if name != "overall"]
        assert references.CONTROL["overall"][column].value == pytest.approx(sum(parts) / 4, abs=0.06)


def test_an_empty_report_says_not_measured_in_every_table():
    made = tables(ReportInputs(commands={"evaluate": "cmma evaluate model=toy_llava"}))
    for table in made.values():
        assert any(not cell.measured for row in table.rows for cell in row.cells), table.name
    assert "cmma evaluate model=toy_llava" in made["evaluation"].to_markdown()


def test_conditions_are_columns_and_what_one_cannot_have_is_a_dash(inputs):
    table = tables(inputs)["spliced"]
    assert table.columns == ("metric", "clean", "dictionary")
    loss, recovered = table.rows
    assert [cell.value for cell in loss.cells] == [0.01, 0.11]
    assert [cell.number() for cell in recovered.cells] == ["–", "undefined"]


def test_measured_cells_stand_beside_the_papers(inputs):
    row = next(row for row in tables(inputs)["hallucination"].rows if row.label == "object")
    assert [cell.value for cell in row.cells] == [-24.6, -42.7]
    peak = tables(inputs)["trace"].rows[0].cells[0]
    assert peak.value == pytest.approx(float(inputs.causal[0].figure.value_RC.max()))
    assert peak.kind == "95% CI"
