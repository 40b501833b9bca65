"""The mathematics of each baseline, on functions and records whose answer is known."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cmma.baselines.config import BaselinesConfig
from cmma.baselines.ground import Ground, Images, OutputOfRecords, PhraseCounts
from cmma.baselines.methods.attention import AttentionHeads, attention_weights
from cmma.baselines.methods.base import DictionaryMethod, linear_dictionary
from cmma.baselines.methods.gradients import GradCAM, IntegratedGradients
from cmma.baselines.methods.pca import pca, principal_components
from cmma.baselines.methods.probes import LinearProbe, MLPProbe
from cmma.baselines.methods.random_directions import random_directions
from cmma.baselines.methods.shapley import Shapley, shapley_values
from cmma.causal.readout import collate_queries
from cmma.features.concepts import Labels, auroc
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser

LAYER, D = 1, 96


def test_components_are_those_of_scikit_learn():
    """Activations of the two units of a component are the positive and the negative part of its score."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((600, 8)) @ np.diag(np.arange(8, 0, -1)) @ rng.standard_normal((8, 8))
    reader = TensorReader(torch.from_numpy(mixed).float(), held_out=0)
    standardiser = Standardiser.fit(reader)
    ground = Ground(None, LAYER, reader, standardiser, None, BaselinesConfig())
    records_IPD = torch.from_numpy(mixed[:20]).float().reshape(5, 4, 8)
    maps_IPU = pca(ground).read(Images((), records_IPD, Labels((), np.zeros((5, 0), bool)))).maps_IPU

    z = standardiser.standardise(torch.from_numpy(mixed).float(), torch.zeros(600, dtype=torch.int8)).numpy()
    oracle = PCA().fit(z)
    scores = (oracle.transform(z) + oracle.mean_ @ oracle.components_.T)[:20].reshape(5, 4, 8)
    signs = np.sign((principal_components(reader, standardiser, 600).numpy() * oracle.components_).sum(1))
    assert np.allclose(maps_IPU[..., :8] - maps_IPU[..., 8:], scores * signs, atol=1e-3)
    assert (maps_IPU[..., :8] * maps_IPU[..., 8:] == 0).all()


def test_a_direction_made_weaker_loses_its_component(plain):
    """a' = 0 removes what lies along the direction, and nothing else."""
    direction_D = torch.zeros(D)
    direction_D[3] = 7.0
    found = linear_dictionary(plain().standardiser, direction_D[None])
    acts_ND = torch.randn(5, D, generator=torch.Generator().manual_seed(1))
    edit = found.edit(ablate=[0])
    from cmma.hooks import Where

    changed_ND = edit.fn(acts_ND, torch.zeros(5, dtype=torch.int8), Where(torch.arange(5), torch.arange(5), 0))
    expected_ND = acts_ND.clone()
    expected_ND[:, 3] = acts_ND[:, 3].clamp(max=0)
    assert torch.allclose(changed_ND, expected_ND, atol=1e-6)


def test_integrated_gradients_are_complete(plain):
    """Attributions sum to the difference of outputs; three points integrate the gradient of a cubic exactly."""
    def output(records_NPD, row_N):
        return torch.stack([records_NPD.pow(3).sum((1, 2)), records_NPD.prod(-1).sum(1)], dim=1)

    records_BPD = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    ground = Ground(None, LAYER, None, Standardiser.identity((2,)), None, BaselinesConfig(ig_steps=3))
    method = IntegratedGradients(ground)
    for target in (0, 1):
        _, map_BP = method.gradients(output, records_BPD, torch.arange(4), target)
        assert torch.allclose(map_BP.sum(1), output(records_BPD, None)[:, target], atol=1e-4)
    gradient_BPD, _ = method.gradients(output, records_BPD, torch.arange(4), 0)
    assert torch.allclose(gradient_BPD, records_BPD**2, atol=1e-4)  # ∫ 3α²h² dα


def test_grad_cam_of_a_linear_output_is_its_positive_part():
    """Weights that differ between patches are averaged: α is their mean."""
    generator = torch.Generator().manual_seed(0)
    weight_PD, records_BPD = torch.randn(5, 3, generator=generator), torch.randn(2, 5, 3, generator=generator)

    def output(records_NPD, row_N):
        return (records_NPD * weight_PD).sum((1, 2))

    method = GradCAM(Ground(None, LAYER, None, Standardiser.identity((3,)), None, BaselinesConfig()))
    alpha_BPD, map_BP = method.gradients(output, records_BPD, torch.arange(2), None)
    assert torch.allclose(alpha_BPD, weight_PD.mean(0).expand_as(records_BPD), atol=1e-5)
    assert torch.allclose(map_BP, (records_BPD @ weight_PD.mean(0)).relu(), atol=1e-5)


def test_shapley_values_are_efficient_and_exact():
    """They sum to the difference of outputs; over all orders they are the textbook's."""
    records_PD, baseline_D = torch.arange(1.0, 5.0)[:, None].expand(4, 2), torch.zeros(2)

    def output(records_NPD, row_N):
        x_NP = records_NPD[..., 0]
        return torch.stack([x_NP.sum(1), x_NP[:, 0] * x_NP[:, 1] + x_NP[:, 2] * x_NP[:, 3]], dim=1)

    values_PC = shapley_values(output, records_PD, baseline_D, 1, seed=0)
    assert np.allclose(values_PC.sum(0), output(records_PD[None], None)[0])
    assert np.allclose(values_PC[:, 0], [1, 2, 3, 4])  # an additive output: each patch its own
    assert np.allclose(values_PC[:, 1], [1, 1, 6, 6])  # pairs share their product: 2 / 2 and 12 / 2

    exact = np.zeros(4)
    for order in permutations(range(4)):
        x = np.zeros(4)
        for patch in order:
            before = x[0] * x[1] + x[2] * x[3]
            x[patch] = patch + 1
            exact[patch] += (x[0] * x[1] + x[2] * x[3] - before) / 24
    assert np.allclose(values_PC[:, 1], exact)


@pytest.mark.parametrize("probe", [LinearProbe, MLPProbe])
def test_probes_tell_separable_images_apart(plain, planted, probe):
    reading = probe(plain(planted)).read(planted)
    assert np.diag(auroc(reading.scores_IU, planted.labels.truth_NC)).tolist() == [1, 1]
    assert reading.by_concept
    image = int(np.flatnonzero(planted.labels.truth_NC[:, 1])[0])
    assert reading.maps_IPU[image, :, 1].argmax() == 4  # where it lies


def test_the_linear_probe_points_along_the_concept(plain, planted):
    directions_CD = LinearProbe(plain(planted)).concept_directions()
    assert directions_CD.abs().argmax(1).tolist() == [0, 1]


def test_random_directions_are_sparse_and_as_many(plain):
    method = random_directions(plain(), 512)
    records_IPD = torch.randn(10, 20, D, generator=torch.Generator().manual_seed(0))
    maps_IPU = method.read(Images((), records_IPD, Labels((), np.zeros((10, 0), bool)))).maps_IPU
    assert maps_IPU.shape == (10, 20, 512)
    assert (maps_IPU > 0).sum(-1).mean() == pytest.approx(32, rel=0.2)


def test_a_dictionary_reads_its_latents(plain, planted):
    """The strongest patch is the image's score."""
    axes = linear_dictionary(plain().standardiser, torch.eye(D))
    reading = DictionaryMethod("axes", plain(), axes).read(planted)
    assert np.allclose(reading.maps_IPU, planted.records_IPD.clamp(min=0), atol=1e-5)
    assert np.array_equal(reading.scores_IU, reading.maps_IPU.max(1))


def test_own_records_give_the_model_s_own_output(toy, seen):
    """An output of the records is the model's when the records are its own, and another when they are not."""
    counts = PhraseCounts(toy, seen.labels.names)
    output = OutputOfRecords(toy, LAYER, seen.queries, counts)
    with torch.no_grad():
        expected = counts(collate_queries(toy, seen.queries), seen.queries)
        assert torch.allclose(output(seen.records_IPD, torch.arange(6)), expected, atol=1e-4)
        swapped = output(seen.records_IPD[[3, 3]], torch.tensor([3, 0]))
    assert torch.allclose(swapped[0], expected[3], atol=1e-4)
    assert not torch.allclose(swapped[1], expected[0], atol=1e-2)


def test_phrases_are_counted_where_the_caption_stands(toy, seen):
    """Explicit loops over the tokens of the answer."""
    batch = collate_queries(toy, seen.queries)
    with torch.no_grad():
        found_BC = PhraseCounts(toy, ["red", "blue star"])(batch, seen.queries)
        p_BSV = toy(**batch).logits.softmax(-1)
    red, blue, star = (toy.answer_ids(word)[0] for word in ("red", "blue", "star"))
    for row in range(len(seen.queries)):
        own = batch.answer_mask[row].nonzero().flatten().tolist()
        once = sum(float(p_BSV[row, column - 1, red]) for column in own)
        pair = sum(float(p_BSV[row, column - 1, blue] * p_BSV[row, column, star]) for column in own[:-1])
        assert found_BC[row].tolist() == pytest.approx([once, pair], abs=1e-4)


def test_attributions_of_the_model_are_complete(toy, seen):
    """SHAP exactly, Integrated Gradients to the error of its integral."""
    reader = TensorReader(seen.records_IPD.flatten(0, 1))
    few = Images(seen.queries[:2], seen.records_IPD[:2], seen.labels)
    ground = Ground(toy, LAYER, reader, Standardiser.fit(reader), few, BaselinesConfig(ig_steps=96))
    output = OutputOfRecords(toy, LAYER, few.queries, PhraseCounts(toy, seen.labels.names))
    rows_N = torch.arange(2)
    with torch.no_grad():
        gain_NC = output(few.records_IPD, rows_N) - output(ground.baseline_D.expand_as(few.records_IPD), rows_N)
    assert few.said_IC.tolist() == [[True, False, False], [False, False, False]]  # "a small solid red triangle."
    expected_NC = np.where(few.said_IC, gain_NC, 0)  # what is not said is not explained
    assert np.allclose(Shapley(ground).read(few).maps_IPU.sum(1), expected_NC, atol=1e-3)
    assert np.allclose(IntegratedGradients(ground).read(few).maps_IPU.sum(1), expected_NC, atol=1e-2)


def test_attention_is_that_of_transformers(toy, seen):
    """The end of the prompt's weights on the patches, head by head; the fused kernel is back afterwards."""
    before = toy.module.config._attn_implementation
    reading = AttentionHeads(Ground(toy, LAYER, None, None, None, BaselinesConfig())).read(seen)
    assert toy.module.config._attn_implementation == before
    batch = toy.collate(seen.samples)
    toy.module.set_attn_implementation("eager")
    with torch.no_grad():
        oracle = toy(**batch, output_attentions=True).attentions
    toy.module.set_attn_implementation(before)
    n_heads, patches_P = oracle[0].shape[1], toy.image_positions(batch)[2]
    assert reading.maps_IPU.shape == (6, 36, 12 * n_heads)
    expected_HP = oracle[7][2, :, batch.prompt_end[2]][:, patches_P]
    assert np.allclose(reading.maps_IPU[2, :, 7 * n_heads : 8 * n_heads].T, expected_HP, atol=1e-6)
    with attention_weights(toy) as weights:
        toy(**batch)
    assert torch.allclose(weights[0].sum(-1)[:, :, -1], torch.ones(6, n_heads), atol=1e-5)
