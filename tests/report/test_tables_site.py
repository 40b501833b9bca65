"""The site over all tables: every number leads to every artifact behind it, and the paper stands beside."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from cmma.figures import Listing
from cmma.report.inputs import ArtifactRef, Chapter, ModelReport, ReportInputs, Shown, TablesInputs
from cmma.report.tables import Cell, Row, Source, Table
from cmma.report.tables_site import state, write_tables

BREAKING = "</pre><script>window.broken = 1</script>"
KEYS = ("aa11", "bb22", "cc33")


@pytest.fixture(scope="module")
def chapter() -> Chapter:
    """A mean over two artifacts, a number of one, one that is missing and one that needs people."""
    table = Table("first-toy", f"First {BREAKING}", ("row", "ours", "paper"), (
        Row("mean", (Cell(0.5, 0.4, 0.6, kind="95% CI", n=2, artifact="aa11 bb22"), Cell(0.9, error=0.1, kind="SE"))),
        Row("single <b>", (Cell(0.7, artifact="cc33"), Cell("–"))),
        Row("later", (Cell(command="cmma tables name=first"), Cell(0.2))),
        Row("people", (Cell(kind="needs people"), Cell(0.3))),
    ), sources=tuple(Source(key, "interpret", str(seed), "cpu") for seed, key in enumerate(KEYS)))
    shown = Shown(Listing("a figure", BREAKING, ["x"], [[1.0]]), "cc33")
    return Chapter("first", "cmma tables name=first", [table], [shown], ("mean: ours", table.cells[0], table.cells[1]))


@pytest.fixture(scope="module")
def site(chapter, tmp_path_factory):
    parent = ArtifactRef("train-sae", "dd44", "cmma train-sae", parents=("gone",), resolved="sae: {}", device="cuda")
    artifacts = [parent, *(ArtifactRef(
        "interpret", key, f"cmma interpret seed={seed}", parents=("dd44",), resolved=f"seed: {seed}\n{BREAKING}",
        summary={"live": BREAKING}, device="cpu") for seed, key in enumerate(KEYS))]
    empty = Chapter("second", "cmma tables name=second", [], [], ("all", Cell(), Cell(1.0)))
    folder = tmp_path_factory.mktemp("out") / "tables"
    write_tables(TablesInputs("Tables", [chapter, empty], artifacts, {"cmma": "0"}, {
        "toy_llava": ModelReport(ReportInputs(title="toy_llava"), 0.1)}), folder)
    return folder


def test_every_key_of_every_cell_has_its_place_on_the_page_of_provenance(site):
    places = set(re.findall(r'id="([^"]+)"', (site / "provenance.html").read_text(encoding="utf-8")))
    cells = [cell for path in site.glob("*.json") for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
             for cell in row["cells"]]
    keys = {key for cell in cells for key in cell["artifact"].split()}
    assert keys == set(KEYS) <= places
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        own = places if page.name == "provenance.html" else set()
        assert set(re.findall(r'href="#([^"]+)"', text)) <= own, page
        assert set(re.findall(r'href="provenance\.html#([^"]+)"', text)) <= places, page


def test_links_stay_inside_and_lead_somewhere(site):
    for path in site.rglob("*.html"):
        for target in re.findall(r'<a [^>]*href="([^"#]+)', path.read_text(encoding="utf-8")):
            found = (path.parent / target).resolve()
            assert found.is_file(), (path, target)
            assert found.is_relative_to(site)


@pytest.mark.browser
def test_a_number_leads_to_its_artifacts_and_their_configuration(site, page):
    page.goto((site / "index.html").as_uri())
    assert page.inner_text(".card .big") == "0.50"
    assert "paper: 0.90 ± 0.10" in page.inner_text(".card")
    page.click("a.card")
    page.click("td a:text('0.50')")
    page.click(":target a:has-text('bb22')")
    section = page.locator(":target")
    assert "cmma interpret seed=1" in section.inner_text()
    section.locator("summary:text('resolved configuration')").click()
    assert BREAKING in section.inner_text()  # as text
    section.locator("a:has-text('dd44')").click()
    assert "cuda" in page.inner_text(":target")
    assert page.locator(":target a").count() == 0  # its parent is gone


@pytest.mark.browser
def test_every_page_is_silent_and_says_what_is_missing(site, page):
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.locator("h1").count() == 1
        assert page.trouble == []
    page.goto((site / "first.html").as_uri())
    assert "not measured: needs people" in page.inner_text("table")
    assert "cmma tables name=first" in page.inner_text("figcaption")


def test_state_counts_what_a_command_can_measure(chapter):
    def rows(*names: str) -> Chapter:
        table = chapter.tables[0]
        return replace(chapter, tables=[replace(table, rows=tuple(row for row in table.rows if row.label in names))])

    assert state(chapter) == "cells not measured: 1"
    assert state(rows("mean", "people")) == "complete, but for: needs people"
    assert state(rows("mean")) == "complete"
    assert state(rows("later")) == "not measured"


def test_the_same_input_gives_the_same_bytes(site, chapter, tmp_path):
    one, two = (write_tables(TablesInputs("Tables", [chapter]), tmp_path / name).parent for name in ("one", "two"))
    for path in one.rglob("*.*"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
