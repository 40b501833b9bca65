"""Planted activations: geometry, frequencies and dependencies are those that the configuration states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.sae.standardiser import Standardiser
from cmma.testbed.planted.activations import plant
from cmma.testbed.planted.atoms import plant_atoms
from cmma.testbed.planted.codes import frequencies, sample_codes
from cmma.testbed.planted.config import CLASSES, PlantedConfig

N = 20_000
SMALL = {"d": 12, "n_visual": 6, "n_textual": 5, "n_shared": 7, "visual_scale": 1.0, "offset": 0.0}


def rare_enough(hits: int, n: int, p: float) -> bool:
    """The count agrees with the probability; a true one is refused once in a million."""
    return bool(binomtest(hits, n, p).pvalue > 1e-6)


@pytest.mark.parametrize("cosine", [-0.3, 0.0, 0.5, 0.9, 1.0])
def test_the_cosine_of_shared_directions_is_exact_and_atoms_have_norm_one(cosine):
    atoms = plant_atoms(PlantedConfig(**SMALL, cosine=cosine))
    visual_AD, textual_AD = atoms.directions_MAW
    shared = atoms.of_class("shared")
    np.testing.assert_allclose((visual_AD * textual_AD).sum(1)[shared], cosine, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(atoms.directions_MAW, axis=2), atoms.present_MA, atol=1e-12)
    assert [len(atoms.of_class(name)) for name in CLASSES] == [6, 5, 7]


def test_records_are_sums_of_atoms_and_a_sample_is_a_function_of_its_index():
    config = PlantedConfig(**{**SMALL, "noise": 0.0, "visual_scale": 10.0})
    samples = plant(config, "train", 0, 5000)
    expected_NMW = np.einsum("nma,maw->nmw", samples.codes_NMA, samples.atoms.directions_MAW)
    expected_NMW[:, Modality.VISUAL] *= 10
    np.testing.assert_allclose(samples.acts_NMW, expected_NMW, atol=1e-4)
    some = plant(config, "train", 4090, 4100)  # across the border of two chunks
    np.testing.assert_array_equal(some.acts_NMW, samples.acts_NMW[4090:4100])
    assert not np.array_equal(plant(config, "test", 0, 10).codes_NMA, samples.codes_NMA[:10])


def test_atoms_fire_as_often_as_stated_whatever_else_is_planted():
    config = PlantedConfig(**SMALL, density=0.15, exponent=0.7, agreement=0.6, group_size=3, coherence=0.8,
                           n_children=2)
    samples = plant(config, "train", 0, N)
    p_A = frequencies(config, samples.atoms)
    fires_NMA = samples.codes_NMA > 0
    for modality in (0, 1):
        for atom, p in enumerate(p_A):
            hits = int(fires_NMA[:, modality, atom].sum())
            assert rare_enough(hits, N, p) if samples.atoms.present_MA[modality, atom] else hits == 0
    free = samples.atoms.parent_A < 0
    for index in range(3):
        assert p_A[free & (samples.atoms.class_A == index)].mean() == pytest.approx(0.15)
    active = samples.codes_NMA[fires_NMA]
    assert active.min() >= 0.5
    assert active.max() <= 1.5
    assert active.mean() == pytest.approx(1.0, abs=0.01)


def test_a_child_never_fires_without_its_parent():
    config = PlantedConfig(**SMALL, density=0.3, exponent=0.0, agreement=0.5, n_children=2, child_rate=0.7)
    samples = plant(config, "train", 0, N)
    fires_NMA = samples.codes_NMA > 0
    children = np.flatnonzero(samples.atoms.parent_A >= 0)
    assert len(children) == 6
    for child in children:
        parent_NM = fires_NMA[:, :, samples.atoms.parent_A[child]]
        child_NM = fires_NMA[:, :, child]
        assert not (child_NM & ~parent_NM).any()
        modality = int(samples.atoms.class_A[child] == 1)
        assert rare_enough(int(child_NM[:, modality].sum()), int(parent_NM[:, modality].sum()), 0.7)


def test_groups_fire_together_as_often_as_stated():
    config = PlantedConfig(**SMALL, density=0.1, exponent=0.5, group_size=2, coherence=0.9)
    samples = plant(config, "train", 0, N)
    p_A = frequencies(config, samples.atoms)
    fires_NA = samples.codes_NMA[:, Modality.VISUAL] > 0
    shared = samples.atoms.of_class("shared")
    p, q = p_A[shared[:2]]
    together = int((fires_NA[:, shared[0]] & fires_NA[:, shared[1]]).sum())
    assert rare_enough(together, N, 0.81 * min(p, q) + 0.19 * p * q)
    apart = int((fires_NA[:, shared[1]] & fires_NA[:, shared[2]]).sum())  # of two groups: independent
    assert rare_enough(apart, N, p_A[shared[1]] * p_A[shared[2]])


@pytest.mark.parametrize("agreement", [0.0, 0.4, 1.0])
def test_paired_tokens_share_concepts_as_often_as_stated(agreement):
    config = PlantedConfig(**SMALL, density=0.2, exponent=0.0, agreement=agreement)
    samples = plant(config, "train", 0, N)
    fires_NMA = samples.codes_NMA[:, :, samples.atoms.of_class("shared")] > 0
    both = int(fires_NMA.all(1).sum())
    assert rare_enough(both, N * 7, agreement * 0.2 + (1 - agreement) * 0.2**2)
    np.testing.assert_array_equal(samples.concepts_NC, fires_NMA.any(1))


def test_disturbances_have_the_stated_size():
    config = PlantedConfig(
        d=12, density=1e-4, noise=0.5, n_outliers=2, outlier=8.0, offset=3.0, textual_scale=2.0, exponent=0.0)
    samples = plant(config, "train", 0, 4000)
    textual_ND = samples.acts_NMW[:, Modality.TEXTUAL] / 2
    assert textual_ND[:, 2:].std(0) == pytest.approx(0.5, rel=0.1)
    assert textual_ND[:, :2].std(0) == pytest.approx((0.5**2 + 0.8**2) ** 0.5, rel=0.1)
    mean_D = textual_ND.mean(0) - np.array([8.0] * 2 + [0.0] * 10)
    assert np.linalg.norm(mean_D) == pytest.approx(3.0, rel=0.05)


def test_the_reader_delivers_pairs_and_pair_views_have_absent_halves():
    samples = plant(PlantedConfig(**SMALL, blocks=2, density=0.2), "train", 0, 400)
    reader = samples.reader(joint=True)
    assert (reader.width, reader.blocks, reader.n_labels) == (24, (12, 12), 7)
    records = samples.records(joint=True)
    by_modality = [records.acts_BD[records.modality_B == code] for code in Modality if code >= 0]
    assert by_modality[0][:, 12:].eq(0).all()
    assert by_modality[1][:, :12].eq(0).all()
    torch.testing.assert_close(by_modality[0] + by_modality[1], by_modality[2])
    assert Standardiser.fit(reader).blocks == (12, 12)
    with pytest.raises(ConfigError, match="blocks"):
        plant(PlantedConfig(**SMALL), "train", 0, 4).records(joint=True)


def test_a_sample_has_one_code_per_atom():
    samples = plant(PlantedConfig(**SMALL, density=0.3), "test", 0, 50)
    codes_NA = sample_codes(samples.codes_NMA, samples.atoms)
    np.testing.assert_allclose(codes_NA[:, :6], samples.codes_NMA[:, 0, :6])
    np.testing.assert_allclose(codes_NA[:, 6:11], samples.codes_NMA[:, 1, 6:11])
    np.testing.assert_allclose(codes_NA[:, 11:], samples.codes_NMA[:, :, 11:].mean(1))


@pytest.mark.parametrize(("wrong", "key"), [
    ({"cosine": 1.1}, "planted.cosine"), ({"density": 0.5, "exponent": 1.0}, "planted.density"),
    ({"n_children": 25}, "planted.n_children"), ({"blocks": 3}, "planted.blocks"),
])  # fmt: skip
def test_a_world_that_cannot_be_is_refused(wrong, key):
    with pytest.raises(ConfigError, match=key):
        PlantedConfig(**wrong)
