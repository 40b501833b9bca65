"""Metrics of pairs on codes whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cmma.evaluation.embeddings import Embeddings
from cmma.evaluation.paired import concept_metrics, modality_scores, pair_metrics, seed_agreement, shared_latents
from cmma.features.pairing import strangers
from cmma.features.pooling import PooledPairs
from cmma.modality import Modality
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.metrics import SAEMetrics
from cmma.sae.standardiser import Standardiser

N, K, D = 60, 16, 12


def dictionary(seed: int = 0):
    """Random features of norm one in units of the model, means that differ between the modalities."""
    mean_MD = torch.stack([torch.full((D,), 3.0), torch.full((D,), -2.0), torch.zeros(D)])
    return build_sae(preset("standard", n_latents=K), D, Standardiser(mean_MD, torch.ones(3, D), (D,)), seed)


def shared_world(sae, noise: float = 0.0):
    """Pairs in which image and text have the same sparse code and are its reconstructions."""
    generator = torch.Generator().manual_seed(0)
    code_NK = torch.rand(N, K, generator=generator) * (torch.rand(N, K, generator=generator) < 0.2)
    code_NK[:, 0] += 0.1  # none is silent
    codes_MNK = torch.stack([code_NK, code_NK + noise * torch.rand(N, K, generator=generator)])
    with torch.no_grad():
        acts_MND = torch.stack([sae.decode(code_NK, torch.full((N,), int(m))) for m in (0, 1)])
    return PooledPairs(torch.arange(N), codes_MNK, codes_MNK, acts_MND)


def test_codes_that_are_shared_score_the_maximum_and_shuffled_pairs_do_not():
    sae = dictionary()
    pairs = shared_world(sae)
    found = pair_metrics(sae, pairs, block=20, n_resamples=100)
    floor = pair_metrics(sae, pairs.with_texts_of(strangers(N)), block=20, n_resamples=100)
    for name in ("code_cosine", "support_jaccard", "image_to_text_r@1", "text_to_image_r@10"):
        assert found[name].value == pytest.approx(1), name
        assert floor[name].value < 0.8, name
    for name in ("cross_error_visual", "cross_error_textual"):
        assert found[name].value == pytest.approx(0, abs=1e-9)
        assert floor[name].value == pytest.approx(2, abs=0.6)  # two independent draws: twice the variance
    assert floor["image_to_text_r@1"].value < 0.2


def test_cross_error_is_the_formula():
    sae = dictionary()
    pairs = shared_world(sae, noise=0.3)
    target = pairs.acts_MND[0].double()
    with torch.no_grad():
        decoded = sae.decode(pairs.mean_MNK[1], torch.zeros(N, dtype=torch.int64)).double()
    expected = float((target - decoded).square().sum() / (target - target.mean(0)).square().sum())
    found = pair_metrics(sae, pairs, n_resamples=100)["cross_error_visual"]
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.low < found.value < found.high
    assert found.n == N


def test_towers_without_a_common_space_have_no_bridge():
    sae = build_sae(preset("standard", n_latents=K), D, Standardiser.identity((5, 7)))
    assert "bridge_diagonal" not in pair_metrics(sae, shared_world(sae), n_resamples=50)
    assert "bridge_diagonal" in pair_metrics(dictionary(), shared_world(dictionary()), n_resamples=50)


def test_modality_scores_weigh_modalities_and_not_their_records():
    metrics = SAEMetrics(1, 4)
    latents_NK = torch.tensor([[1.0, 0, 2, 0], [1.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 3, 2, 0]])
    metrics.update(torch.randn(4, 1), torch.randn(4, 1), latents_NK, torch.tensor([0, 0, 0, 1]))
    score_K = modality_scores(metrics)
    assert score_K.tolist() == pytest.approx([0.5, 0.0, (2 / 3) / (2 / 3 + 2), float("nan")], nan_ok=True)
    assert shared_latents(score_K).value == pytest.approx(2 / 3)
    assert shared_latents(score_K).n == 3


def test_a_permuted_dictionary_agrees_with_itself_entirely():
    sae, other = dictionary(), dictionary()
    order = torch.randperm(K, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[order])
    pairs = shared_world(sae)
    permuted = replace(pairs, strongest_MNK=pairs.strongest_MNK[:, :, order])
    for found in seed_agreement(sae, pairs, other, permuted, n_resamples=50).values():
        assert [interval.value for interval in found.values()] == pytest.approx([1, 1])
    unrelated = seed_agreement(sae, pairs, dictionary(seed=5), permuted, n_resamples=50)
    assert unrelated[Modality.VISUAL]["code_cosine"].value < 0.7


def test_latents_of_one_concept_are_monosemantic():
    """Samples of four concepts with an embedding each; latent k fires on concept k alone, in image and in text."""
    concept_N = torch.arange(N) % 4
    code_NK = torch.nn.functional.one_hot(concept_N, K).float()
    pairs = replace(shared_world(dictionary()), strongest_MNK=torch.stack([code_NK, code_NK]))
    axes = normalize(torch.eye(4), dim=1)[concept_N].numpy()
    found = concept_metrics(pairs, Embeddings(axes, axes, "known"))
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(
        {"monosemanticity_visual": 1, "monosemanticity_textual": 1, "monosemanticity_cross": 1})
    assert {interval.n for interval in found.values()} == {4}  # the other latents never fire
    shuffled = axes[np.random.default_rng(0).permutation(N)]
    floor = concept_metrics(pairs, Embeddings(shuffled, shuffled, "known"), with_text=False)
    assert floor.keys() == {"monosemanticity_visual"}
    assert floor["monosemanticity_visual"].value == pytest.approx(0.25, abs=0.1)  # one concept in four
