"""Effects between layers against one whole forward pass per ablation, and on readouts whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal.queries import question_queries
from cmma.causal.readout import collate_queries
from cmma.causal.rivals import prepare_readout
from cmma.cmig.ablation import FeatureAblation
from cmma.cmig.between import Later, between_table, later_activations
from cmma.errors import ConfigError
from cmma.hooks.streams import splice
from cmma.hooks.trace import Trace

LAYER, LATER, FEATURES = 1, 2, [3, 7, 11]


@pytest.fixture
def ablation(tiny, dictionary, scenes):
    readout, queries = prepare_readout(tiny, question_queries(scenes[:3], per_sample=1), "log_probability")
    batch = collate_queries(tiny, queries)
    return FeatureAblation(tiny, dictionary(tiny, LAYER), LAYER, batch, queries, FEATURES, readout, rows_at_once=4)


def test_later_activations_equal_whole_passes_with_an_edit(ablation, tiny, dictionary):
    later = Later(dictionary(tiny, LATER), LATER, tuple(range(24)))
    clean, under = later_activations(ablation, later)
    (place,) = tiny.record_sites(LATER)
    batch = collate_queries(tiny, ablation.queries)
    modality = tiny.token_modality(batch)

    def plain(edit=None):
        with torch.no_grad(), Trace(tiny, [place.site]) as acts:
            if edit is None:
                tiny(**batch)
            else:
                with splice(tiny, LAYER, edit):
                    tiny(**batch)
        found = []
        for states, kinds in zip(acts[place.site], modality, strict=True):
            chosen = kinds >= 0
            found.append(later.sae.encode(states[chosen], kinds[chosen]).mean(0))
        return torch.stack(found).double()

    torch.testing.assert_close(clean, plain(), atol=1e-5, rtol=1e-4)
    for index, feature in enumerate(FEATURES):
        expected = plain(ablation.sae.edit(ablate=[feature]))
        torch.testing.assert_close(under[:, index], expected, atol=1e-5, rtol=1e-4)
    assert (under - clean[:, None]).abs().max() > 1e-3


def test_only_what_feeds_a_feature_has_an_edge():
    """Ablating source 7 lowers target 101 by half a spread; 102 is fed by nothing, 103 is constant."""
    rng = np.random.default_rng(0)
    clean = np.stack([rng.normal(size=60), rng.normal(size=60), np.full(60, 2.0)], axis=1)
    half = rng.normal(0, 0.01, (30, 2, 3)) * [1, 1, 0]
    under = np.repeat(clean[:, None], 2, axis=1) + np.concatenate([half, -half])  # noise of mean zero
    under[:, 0, 0] -= 0.5 * clean[:, 0].std(ddof=1)
    later = Later(None, 5, (101, 102, 103))
    table = between_table(clean, under, [7, 8], later, resamples=500).set_index(["source", "target"])
    assert set(table.index) == {(7, 101), (7, 102), (8, 101), (8, 102)}
    assert table.loc[(7, 101), "effect"] == pytest.approx(0.5, abs=0.01)
    assert table.loc[(7, 101), "q"] < 0.01
    assert (table.drop((7, 101))["q"] > 0.05).all()
    assert (table["strength_low"] <= table["strength"]).all()


def test_an_earlier_layer_is_refused(ablation, tiny, dictionary):
    with pytest.raises(ConfigError, match="layer 1 does not lie above layer 1"):
        later_activations(ablation, Later(dictionary(tiny, 1), 1, (0,)))
