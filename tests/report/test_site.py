"""The report as a user meets it: opened from disk in headless Chromium."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cmma.report import graph
from cmma.report.images import data_uri, heat_uri
from cmma.report.inputs import ReportInputs
from cmma.report.site import write_report


@pytest.fixture(scope="module")
def site(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "report"
    assert write_report(inputs, folder) == folder / "index.html"
    return folder


@pytest.mark.browser
def test_every_page_is_silent_offline_and_unbroken_by_hostile_text(site, page):
    for name in ("index", "features", "graph", "causal", "phases", "provenance", "features/L06-000000",
                 "features/L06-000001", "features/L06-000002"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.locator("h1").count() == 1
        assert page.evaluate("window.broken") is None
        assert page.trouble == []


@pytest.mark.browser
def test_feature_list_is_virtual_filters_and_sorts(site, page, inputs):
    page.goto((site / "features.html").as_uri())
    rows = page.locator("#rows tr[aria-rowindex]")
    assert page.inner_text("#count") == "30 of 3,000 features"  # those with a page
    page.uncheck("#paged")
    live = int((inputs.features["class"] != "dead").sum())
    assert page.inner_text("#count") == f"{live:,} of 3,000 features"
    assert rows.count() < 60  # only the window is in the document
    page.uncheck("input[value=visual]")
    page.uncheck("input[value=mixed]")
    expected = inputs.features["class"].isin(["textual", "cross_modal"])
    assert page.inner_text("#count").startswith(f"{int(expected.sum()):,} of")
    page.fill("#search", "red ring")
    expected &= inputs.features["concept"] == "red ring"
    assert page.inner_text("#count").startswith(f"{int(expected.sum()):,} of")
    page.click("th[data-sort=density]")
    densest = inputs.features[expected].sort_values("density", ascending=False)["feature"].iloc[0]
    assert rows.first.locator("td").first.inner_text() == f"6 · {densest}"
    page.evaluate("document.getElementById('list').scrollTop = 1e6")
    page.wait_for_function(f"[...document.querySelectorAll('#rows tr')].at(-2).ariaRowIndex == {int(expected.sum())}")


@pytest.mark.browser
def test_feature_page_shows_examples_and_the_slider_fades_the_heat_map(site, page, inputs):
    page.goto((site / "features/L06-000004.html").as_uri())
    own = inputs.examples[inputs.examples["feature"] == 4]
    assert page.locator(".example").count() == len(own)
    assert page.locator(".band").count() == own["band"].nunique()
    assert page.locator(".example .token").count() == own["tokens"].map(len).sum()
    size = page.locator("img.heat").first.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size == [6, 6]  # one pixel per patch
    page.locator("#heat").fill("0.2")
    assert page.locator("img.heat").first.evaluate("image => getComputedStyle(image).opacity") == "0.2"
    page.keyboard.press("Escape")
    page.click("a[rel=next]")
    assert page.url.endswith("L06-000005.html")


@pytest.mark.browser
def test_the_security_policy_is_in_force(site, browser):
    tab = browser.new_page()
    tab.goto((site / "index.html").as_uri())
    assert tab.evaluate("fetch('data:,x').then(() => 'open', () => 'closed')") == "closed"
    tab.close()


@pytest.mark.browser
def test_hostile_captions_are_shown_as_text(site, page, inputs):
    page.goto((site / "features/L06-000000.html").as_uri())
    assert page.locator("h1").inner_text().startswith("<script>window.broken = 1</script>")
    assert page.locator(".token").nth(1).inner_text() == "<script>window.broken = 1</script>"


def wait_for_drawn(page, n_edges: int) -> None:
    """cytoscape answers ``:visible`` from the last frame that it drew, so a count has to wait for the next one."""
    drawn = "document.querySelector('.graph-section').graph.edges(':visible').length"
    page.wait_for_function(f"expected => {drawn} === expected", arg=n_edges)


@pytest.mark.browser
def test_graph_filters_by_strength_q_and_class(site, page, inputs):
    page.goto((site / "graph.html").as_uri())

    def assert_drawn(n_edges: int) -> None:
        wait_for_drawn(page, n_edges)
        assert page.inner_text(".count").startswith(f"{n_edges} of")

    assert_drawn(len(inputs.edges))
    page.locator("input[name=q]").fill("0.05")
    assert_drawn(int((inputs.edges["q"] <= 0.05).sum()))
    page.locator("input[name=q]").fill("1")
    page.locator("input[name=strength]").fill("0.2")
    assert_drawn(int((inputs.edges["strength"] >= 0.2).sum()))
    page.locator("input[name=strength]").fill("0")
    page.uncheck("input[value=visual]")
    classes = inputs.features.set_index("feature")["class"]
    kept = (inputs.edges["source"].map(classes) != "visual") & (inputs.edges["target"].map(classes) != "visual")
    assert_drawn(int(kept.sum()))


@pytest.mark.browser
def test_a_click_on_a_feature_opens_its_page(site, page):
    page.goto((site / "graph.html").as_uri())
    place = page.evaluate("""() => {
        const graph = document.querySelector('.graph-section').graph;
        const node = graph.nodes("[link != '']")[0], box = graph.container().getBoundingClientRect();
        const at = node.renderedPosition();
        return {x: box.x + at.x, y: box.y + at.y, link: node.data('link')};
    }""")
    page.mouse.click(place["x"], place["y"])
    page.wait_for_url(f"**/{place['link']}")


@pytest.mark.browser
def test_five_hundred_features_and_five_thousand_interactions(page, inputs, tmp_path):
    rng = np.random.default_rng(0)
    pairs = rng.permutation(np.stack(np.triu_indices(500, 1), axis=1))[:5000]
    edges = pd.DataFrame({
        "layer": 6, "source": pairs[:, 0], "target": pairs[:, 1], "strength": rng.random(5000), "excess": 0.1,
        "p": 0.01, "q": rng.random(5000), "artifact": "c0ffee000004",
    })  # fmt: skip
    index = write_report(replace(inputs, edges=edges, features=None), tmp_path / "report")
    page.goto((index.parent / "graph.html").as_uri())
    assert page.evaluate("document.querySelector('.graph-section').graph.nodes().length") == 500
    wait_for_drawn(page, 5000)
    page.locator("input[name=q]").fill("0.1")
    wait_for_drawn(page, int((edges["q"] <= 0.1).sum()))


@pytest.mark.browser
def test_an_empty_report_opens_and_names_the_commands(page, tmp_path):
    index = write_report(ReportInputs(commands={"build-cmig": "cmma build-cmig model=toy_llava"}), tmp_path / "report")
    for name in ("index", "features", "graph", "causal", "phases", "provenance"):
        page.goto((index.parent / f"{name}.html").as_uri())
        assert page.trouble == []
    page.goto((index.parent / "graph.html").as_uri())
    assert "cmma build-cmig model=toy_llava" in page.inner_text("main")


def test_no_page_refers_to_anything_outside_itself(site):
    """Links are relative and inside the folder; images are data; nothing is loaded."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert 'http-equiv="Content-Security-Policy"' in text
        for target in re.findall(r'<a [^>]*href="([^"#]+)', text):
            assert (path.parent / target).resolve().is_file(), (path.name, target)
        assert all(source.startswith(("data:", "data:image")) for source in re.findall(r'<img [^>]*src="([^"]+)', text))
        assert not re.search(r"<(link|script|iframe)[^>]*(src|href)=\"(?!data:,)", text)


def test_every_table_is_written_in_four_forms(site):
    names = {path.stem for path in (site / "tables").iterdir()}
    assert {"sae", "specialisation", "hallucination", "trace", "interventions", "cmig", "control"} <= names
    assert {path.suffix for path in (site / "tables").iterdir()} == {".md", ".tex", ".csv", ".json"}
    assert len(list((site / "tables").iterdir())) == 4 * len(names)


def test_a_failed_report_leaves_the_old_one(inputs, tmp_path):
    folder = tmp_path / "report"
    write_report(ReportInputs(title="first"), folder)
    broken = replace(inputs, features=inputs.features.drop(columns="class"))
    with pytest.raises(KeyError):
        write_report(broken, folder)
    assert "first" in (folder / "index.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    write_report(ReportInputs(title="second"), folder)
    assert "second" in (folder / "index.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_graph_layout_is_the_same_every_time_and_inside_the_frame():
    rng = np.random.default_rng(0)
    edges = pd.DataFrame({"source": rng.integers(0, 30, 80), "target": rng.integers(30, 60, 80),
                          "strength": rng.random(80), "excess": 0.0, "p": 0.5, "q": 0.5})
    classes = {node: "visual" if node < 30 else "textual" for node in range(60)}
    places = graph.layout(edges, classes)
    assert places == graph.layout(edges.sample(frac=1, random_state=1).sort_index(), classes)
    assert all(0 < x < graph.WIDTH and 0 < y < graph.HEIGHT for x, y in places.values())
    one = pd.DataFrame({"source": [1], "target": [1], "strength": [0.5], "excess": 0.0, "p": 1.0, "q": 1.0})
    assert list(graph.layout(one, {})) == [1]


def test_images_are_small_square_and_lossless_when_tiny():
    def decode(uri: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))

    rng = np.random.default_rng(0)
    tiny = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(decode(data_uri(tiny))), np.asarray(tiny))
    assert decode(data_uri(Image.new("RGB", (640, 400)))).size == (160, 160)
    heat = np.asarray(decode(heat_uri(np.array([[0.0, 1.0], [0.5, np.nan]]))))
    assert heat[..., 3].tolist() == [[0, 255], [128, 0]]
