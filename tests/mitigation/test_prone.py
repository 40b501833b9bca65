"""Rankings of hallucination-prone features."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.mitigation.prone import (
    NothingHallucinated,
    ProneFeatures,
    cross_validated_auroc,
    prediction_table,
    prone_features,
)
from cmma.mitigation.spoken import spoken_mentions

LAYER = 1


@pytest.fixture
def noise():
    rng = np.random.default_rng(0)
    return rng.random((60, 40)) * (rng.random((60, 40)) < 0.5), rng.random(60) < 0.4


def test_prediction_ranks_by_the_area_under_the_curve(noise):
    evidence_NK, label_N = noise
    table = prediction_table(evidence_NK, label_N).set_index("feature")
    areas = {k: roc_auc_score(label_N, evidence_NK[:, k]) for k in range(40)}
    assert set(table.index) == {k for k, area in areas.items() if area > 0.5 + 1e-9}
    assert table["auroc"].to_dict() == pytest.approx({k: areas[k] for k in table.index})
    assert table["auroc"].is_monotonic_decreasing
    first = table.index[0]
    assert table.loc[first, "hallucinated"] == (evidence_NK[label_N, first] > 0).mean()


def test_choosing_and_scoring_on_other_images_shows_that_noise_predicts_nothing(noise):
    evidence_NK, label_N = noise
    assert prediction_table(evidence_NK, label_N)["auroc"].iloc[0] > 0.6  # the best of forty, on the same images
    found = [cross_validated_auroc(evidence_NK, label_N, seed) for seed in range(10)]
    assert abs(np.mean(found) - 0.5) < 0.1
    evidence_NK[:, 7] = label_N
    assert cross_validated_auroc(evidence_NK, label_N) == 1


def test_without_faithful_images_nothing_can_be_predicted(noise):
    evidence_NK, label_N = noise
    assert prediction_table(evidence_NK, np.ones_like(label_N)).empty
    assert np.isnan(cross_validated_auroc(evidence_NK, np.ones_like(label_N)))


def test_union_takes_turns_and_intersection_keeps_the_causal_order():
    rankings = [pd.DataFrame({"feature": each}) for each in ([5, 2, 9], [2, 7, 5, 1])]
    prone = ProneFeatures(*rankings, 0.5, torch.zeros(10))
    assert prone.pool("union") == (5, 2, 7, 9, 1)
    assert prone.pool("intersection") == (5, 2)
    assert prone.pool("prediction") == (2, 7, 5, 1)


def test_attribution_keeps_what_lowers_the_margin_when_it_is_ablated(toy, sae, biased, small):
    caption = "a small solid blue ring, a large dotted yellow star"
    mentions = spoken_mentions(toy, biased[:3], [caption] * 3, SHAPES_VOCABULARY)
    prone = prone_features(toy, sae, LAYER, mentions, SHAPES_VOCABULARY, small)
    assert len(prone.attribution) > 0
    assert (prone.attribution["effect"] < 0).all()
    assert prone.attribution["effect"].is_monotonic_increasing


def test_a_faithful_model_has_nothing_to_mitigate(toy, sae, biased, small):
    mentions = spoken_mentions(toy, biased[:2], ["a blue ring"] * 2, SHAPES_VOCABULARY)
    with pytest.raises(NothingHallucinated, match="nothing to mitigate"):
        prone_features(toy, sae, LAYER, mentions, SHAPES_VOCABULARY, small)
