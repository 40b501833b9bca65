"""Configuration: the paper's values, one-line errors that name the key, presets that agree with the YAML files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cmma.errors import ConfigError
from cmma.sae.config import ARCHITECTURES, PRESETS, OptimConfig, SAEConfig, preset

CONF = Path(__file__).parents[2] / "conf" / "sae"


def test_defaults_are_the_papers():  # section 4.1 of the paper
    sae, optim = SAEConfig(), OptimConfig()
    assert (sae.arch, sae.lambda1, sae.lambda2, sae.lambda3, sae.tau) == ("msae", 1e-3, 5e-4, 2e-4, 0.1)
    assert (optim.lr, optim.batch, optim.epochs, optim.beta1, optim.beta2) == (3e-4, 2048, 50, 0.9, 0.999)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_yaml_and_presets_agree(arch):
    merged = OmegaConf.merge(OmegaConf.structured(SAEConfig), OmegaConf.load(CONF / f"{arch}.yaml"))
    assert OmegaConf.to_object(merged) == preset(arch)
    assert {path.stem for path in CONF.glob("*.yaml")} == {*ARCHITECTURES} == {*PRESETS}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"arch": "relu"}, "sae.arch"), ({"n_latents": 0}, "sae.n_latents"), ({"lambda2": -1.0}, "sae.lambda2"),
        ({"tau": 2.0}, "sae.tau"), ({"arch": "topk", "k": 2048}, "sae.k"), ({"ema_decay": 1.0}, "sae.ema_decay"),
        ({"reduction": "max"}, "sae.reduction"), ({"any": "all"}, "sae.any"),
        ({"adaptive_sparsity": True, "lambda1": 0.0}, "sae.adaptive_sparsity"),
        ({"arch": "batchtopk", "adaptive_sparsity": True, "target_l0_textual": 1025.0}, "sae.target_l0_textual"),
        ({"arch": "matryoshka", "prefixes": [0.5, 0.25, 1.0]}, "sae.prefixes"),
        ({"arch": "matryoshka", "prefix_weights": [1.0]}, "sae.prefix_weights"),
        ({"arch": "separate_matched", "n_latents": 2**15}, "sae.n_latents"), ({"penalty": "l2"}, "sae.penalty"),
        ({"bandwidth": 0.0}, "sae.bandwidth"), ({"mask": 1.0}, "sae.mask"),
        ({"lambda1": float("nan")}, "sae.lambda1"),
    ],
)
def test_a_wrong_value_is_named(wrong, named):
    with pytest.raises(ConfigError, match=named) as caught:
        SAEConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_a_wrong_optimiser_value_is_named():
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        OptimConfig(lr=0.0)
    with pytest.raises(ConfigError, match=r"optim\.steps"):
        OptimConfig(steps=0)


def test_epochs_become_steps_rounded_up():
    assert OptimConfig(batch=100, epochs=2).total_steps(n_records=101) == 3  # 202 records
    assert OptimConfig(batch=100, steps=7).total_steps(n_records=101) == 7


def test_configuration_imports_no_torch():
    code = "import sys, cmma.sae, cmma.sae.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_key_survives_a_round_trip():
    assert SAEConfig(**asdict(preset("topk", k=5))) == preset("topk", k=5)
