"""One factor's patches from the other image of a pair: the trained small models flip just the answers about it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cmma.causal.config import TraceConfig
from cmma.causal.method_configs import FactorSwapConfig
from cmma.causal.methods.factor_swap import DISTURBED, ELSEWHERE, FLIPPED, OBJECT, _questions, run
from cmma.causal.queries import image_pair_contrasts
from cmma.config import load_group
from cmma.errors import ConfigError, DataError
from cmma.models import load_model
from cmma.models.spec import ModelSpec


@pytest.fixture(scope="module")
def config():
    return TraceConfig(method="factor_swap", split="pairs", max_samples=6, factor_swap=FactorSwapConfig(2, 3))


def test_questions_are_about_both_images_and_half_of_them_differ(pairs, config):
    """A pair about colour: a question that names the colour is allowed on one image only, so it is not asked."""
    asked = list(_questions(image_pair_contrasts(pairs), config))
    for pair in {each.pair.clean.key for each in asked}:
        own = [each for each in asked if each.pair.clean.key == pair]
        assert 1 <= sum(each.differs for each in own) <= 2
        assert sum(not each.differs for each in own) <= 3
        assert len({each.question for each in own}) == len(own)
    # The question of a pair was drawn by another part of the testbed, with both of its answers.
    known = {(each.pair.clean.key, each.question): (each.answer, each.other) for each in asked}
    drawn = {(each.clean.key, each.clean.text): (each.clean.answer, each.clean.other) for each in
             image_pair_contrasts(pairs)}  # fmt: skip
    assert known.keys() & drawn.keys()
    assert all(known[name] == drawn[name] for name in known.keys() & drawn.keys())


def test_at_the_last_vision_layer_all_flips_and_nothing_else(pairs, config):
    """BLIP reads the image through its last layer alone: what the object's patches hold there decides."""
    model = load_model(ModelSpec(**load_group("model", "toy_blip")))
    found = run(model, pairs, config)
    cells = found.tables["cells"].query("factor == 'all'").set_index(["counted", "group", "row"])["value"]
    last = "vision.layers.3.resid_post"
    assert cells[FLIPPED, OBJECT, last] >= 0.9
    assert cells[DISTURBED, OBJECT, last] <= 0.1
    assert cells[FLIPPED, ELSEWHERE, last] <= 0.1
    answers = found.tables["answers"]
    assert set(np.unique(answers["value"])) <= {0.0, 1.0}
    by_layer = [cells[FLIPPED, OBJECT, f"vision.layers.{layer}.resid_post"] for layer in range(4)]
    assert found.summary["best"]["flipped_value"] == max(by_layer)
    json.dumps(found.summary, allow_nan=False)  # shares that are 1 everywhere have no bootstrap interval


def test_what_it_cannot_do_is_one_line(tiny_clip, tiny, pairs, config):
    with pytest.raises(ConfigError, match="answers none"):
        run(tiny_clip, pairs, config)
    with pytest.raises(ConfigError, match="whole layers"):
        run(tiny, pairs, TraceConfig(method="factor_swap", split="pairs", module="head"))
    with pytest.raises(DataError, match="no answer that could flip"):
        run(tiny, pairs, config)
