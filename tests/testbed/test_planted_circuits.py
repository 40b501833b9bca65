"""Planted circuits: what the graph code measures on them is what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.cmig.effects import pairwise_effects
from cmma.cmig.inference import edge_table
from cmma.errors import ConfigError, DataError
from cmma.testbed.planted.circuits import plant_circuit
from cmma.testbed.planted.config import CircuitConfig


@pytest.fixture(scope="module")
def codes_NA():
    rng = np.random.default_rng(0)
    return (rng.random((80, 15)) < 0.6) * rng.uniform(0.5, 1.5, (80, 15))


def test_excess_and_main_effects_have_their_closed_form(codes_NA):
    circuit = plant_circuit(CircuitConfig(n_features=10, n_edges=8, noise=0), codes_NA)
    effects = pairwise_effects(circuit, circuit.features_K.tolist())
    i, j = circuit.pairs_P2.T
    z_NK = codes_NA[:, circuit.features_K]
    np.testing.assert_array_equal(effects.pairs_P2, circuit.pairs_P2)
    np.testing.assert_allclose(effects.excess_PN, (circuit.strength_P * z_NK[:, i] * z_NK[:, j]).T, atol=1e-12)
    np.testing.assert_allclose(effects.excess_PN, circuit.excess_PN, atol=1e-12)
    expected_NK = -z_NK * (circuit.main_K + z_NK @ circuit.interaction_KK)
    np.testing.assert_allclose(effects.main_KN.T, expected_NK, atol=1e-12)
    np.testing.assert_allclose(circuit.main_KN, effects.main_KN, atol=1e-12)
    assert (circuit.strength_P != 0).sum() == 8
    assert np.abs(circuit.strength_P[circuit.strength_P != 0]).min() >= 0.5


def test_a_saturating_link_keeps_the_truth_exact(codes_NA):
    circuit = plant_circuit(CircuitConfig(n_features=6, n_edges=3, saturation=0.5, noise=0), codes_NA)
    effects = pairwise_effects(circuit, circuit.features_K.tolist())
    np.testing.assert_allclose(effects.excess_PN, circuit.excess_PN, atol=1e-12)
    assert np.abs(effects.clean_N).max() < 2  # tanh(s u) / s is below 1 / s


def test_null_graphs_have_no_interaction(codes_NA):
    additive = plant_circuit(CircuitConfig(n_features=10, n_edges=8, graph="additive", noise=0), codes_NA)
    effects = pairwise_effects(additive, additive.features_K.tolist())
    np.testing.assert_allclose(effects.excess_PN, 0, atol=1e-12)
    assert np.abs(effects.main_KN).max() > 0.5
    zero = plant_circuit(CircuitConfig(n_features=10, n_edges=8, graph="zero", noise=0), codes_NA)
    np.testing.assert_array_equal(pairwise_effects(zero, zero.features_K.tolist()).main_KN, 0)


def test_the_readout_is_differentiable_and_its_cross_derivative_is_the_edge(codes_NA):
    circuit = plant_circuit(CircuitConfig(n_features=6, n_edges=5), codes_NA)
    codes_NK = torch.from_numpy(circuit.codes_NK)
    hessian = torch.autograd.functional.hessian(lambda z_NK: circuit.readout(z_NK)[3], codes_NK)[3, :, 3, :]
    np.testing.assert_allclose(hessian.numpy(), circuit.interaction_KK, atol=1e-12)


def test_noise_belongs_to_a_run_and_the_edges_are_found_through_it(codes_NA):
    circuit = plant_circuit(CircuitConfig(n_features=8, n_edges=4, noise=0.1), codes_NA)
    first, again = (int(circuit.features_K[0]),), (int(circuit.features_K[0]),)
    np.testing.assert_array_equal(circuit([first]), circuit([(), again])[1:])
    table = edge_table(pairwise_effects(circuit, circuit.features_K.tolist()), resamples=50)
    found = table.head(len(circuit.strength_P))
    np.testing.assert_array_equal(found["q_excess"][circuit.strength_P != 0] < 0.05, True)
    assert (np.sign(found["excess_mean"]) == np.sign(circuit.strength_P))[circuit.strength_P != 0].all()


def test_the_same_circuit_lies_over_other_samples(codes_NA):
    config = CircuitConfig(n_features=5, n_edges=3)
    one, two = plant_circuit(config, codes_NA), plant_circuit(config, codes_NA[:30])
    np.testing.assert_array_equal(one.features_K, two.features_K)
    np.testing.assert_array_equal(one.interaction_KK, two.interaction_KK)


def test_impossible_circuits_are_refused(codes_NA):
    with pytest.raises(ConfigError, match="n_features"):
        plant_circuit(CircuitConfig(n_features=16, n_edges=1), codes_NA)
    with pytest.raises(ConfigError, match="n_edges"):
        CircuitConfig(n_features=3, n_edges=4)
    with pytest.raises(DataError, match="does not read"):
        plant_circuit(CircuitConfig(n_features=5, n_edges=3), codes_NA)([(99,)])
