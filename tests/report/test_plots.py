"""Figures as data survive their JSON, and are drawn with every number and name they hold, escaped."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from cmma.figures import Curves, Gallery, HeatMap, Line, Listing, from_json, to_json
from cmma.report.inputs import Shown
from cmma.report.plots import draw

HOLES = np.array([[0.5, np.nan], [-0.25, 1.0]])


def test_json_keeps_holes_and_is_strict():
    curves = Curves("flow", "change", "layer", [0, 1], [Line("a", [1.0, np.nan], [0.5, np.nan], [1.5, np.nan])])
    text = json.dumps(to_json([HeatMap("map", "share", HOLES, ["0", "1"], ["x", "y"], n=3), curves]), allow_nan=False)
    heat, lines = from_json(json.loads(text))
    np.testing.assert_array_equal(heat.value_RC, HOLES)
    assert (heat.n, list(heat.columns), heat.low_RC) == (3, ["x", "y"], None)
    np.testing.assert_array_equal(lines.lines[0].high_X, [1.5, np.nan])


def test_a_map_has_the_profile_of_its_peak_where_rows_are_numbers():
    numbered = draw(Shown(HeatMap("map", "share", HOLES, ["0", "1"], ["x", "y"])))
    assert len(numbered["drawings"]) == 2
    assert "at y" in numbered["drawings"][1][1]
    assert len(draw(Shown(HeatMap("map", "share", HOLES, ["a", "b"], ["x", "y"])))["drawings"]) == 1


def test_lines_leave_out_what_is_not_finite_and_escape_names():
    figure = Curves("f", "a", "layer", [0, 1, 2], [Line("<b>", [1, np.nan, 3]), Line("other", [0, 0, 0])])
    (svg, _), = draw(Shown(figure))["drawings"]
    assert svg.count("<circle") == 5
    assert "&lt;b&gt;" in svg
    assert "<b>" not in svg


def test_listings_print_numbers_and_galleries_show_their_files():
    table = draw(Shown(Listing("t", "a", ["x", "y"], [["one", -0.12345], ["two", None]])))["listing"]
    assert table["rows"] == [["one", "−0.123"], ["two", "–"]]
    shown = Shown(Gallery("g", "a", [[("images/a.png", "first")]]), images={"images/a.png": Image.new("RGB", (8, 8))})
    ((uri, caption),), = draw(shown)["gallery"]
    assert uri.startswith("data:image/webp")
    assert caption == "first"
