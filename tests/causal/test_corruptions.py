"""Four corruptions of the same samples: what they must share, and what the truth of the world says of them."""

from __future__ import annotations

import numpy as np
import pytest

from cmma.causal.config import NoiseConfig, TraceConfig
from cmma.causal.methods.corruptions import ADDITIVE, PAIR, REPLACEMENT, correlations, run
from cmma.config import load_group
from cmma.errors import ConfigError
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples


@pytest.fixture(scope="module")
def found():
    model = load_model(ModelSpec(**load_group("model", "toy_llava")))
    samples = list(generate_samples("pairs", 0, 8))
    config = TraceConfig(method="corruptions", layers=[0, 11], correct_only=False, noise=NoiseConfig(draws=2))
    return run(model, samples, config)


def test_all_four_have_the_same_rows_groups_and_clean_scores(found):
    table = found.tables["trace"]
    cells = {name: own[["row", "group", "n"]].to_numpy().tolist() for name, own in table.groupby("corruption")}
    assert len(cells) == 4
    assert all(own == cells[PAIR] for own in cells.values())
    clean = [found.summary[name.replace(" ", "_")]["clean"] for name in cells]
    np.testing.assert_allclose(clean, clean[0], atol=1e-4)
    assert found.figures[0].value_RC.shape == (2, 4 * len(set(table["group"])))


def test_a_replaced_word_leaves_the_image_alone_and_the_last_layer_only_its_last_token(found):
    """The image comes before the question in a causal stream: restoring it is exactly no effect."""
    table = found.tables["trace"].set_index(["corruption", "group", "row"])["effect"]
    last = "language.layers.11.resid_post"
    for group in ("changed object", "background"):
        assert (table[REPLACEMENT, group] == 0).all()
    for name in (ADDITIVE, PAIR):
        assert table[name, "changed object", last] == pytest.approx(0, abs=1e-5)
    recovery = found.tables["trace"].set_index(["corruption", "group", "row"])["recovery"]
    for name in (ADDITIVE, PAIR, REPLACEMENT):
        assert recovery[name, "last", last] == pytest.approx(1, abs=1e-3)


def test_what_is_said_adds_up(found):
    for name in (ADDITIVE, PAIR, REPLACEMENT):
        assert sum(found.summary[name.replace(" ", "_")]["said"].values()) == pytest.approx(1)


def test_rank_correlations_are_of_the_cells_that_both_have():
    a, nan = np.array([1.0, 2.0, 3.0, 9.0]), np.nan
    agree = correlations({"a": a, "b": np.array([30.0, 20.0, 10.0, nan]), "c": a**3})
    assert agree == pytest.approx({"a / b": -1, "a / c": 1, "b / c": -1})


def test_a_model_without_answers_is_one_clear_line(tiny_clip, pairs):
    with pytest.raises(ConfigError, match="tiny clip answers none"):
        run(tiny_clip, pairs, TraceConfig(method="corruptions"))
