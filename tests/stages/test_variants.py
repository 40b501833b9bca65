"""Variants of a stage: each is its own file, with what the user chose for all of them."""

from __future__ import annotations

import dataclasses

import pytest
from omegaconf import OmegaConf

from cmma.causal.config import InterventionConfig
from cmma.config import Config, config_dir, load_group, schema, to_config
from cmma.errors import ConfigError
from cmma.stages.variants import variants


def composed(**sections) -> Config:
    return to_config(OmegaConf.merge(schema(), sections))


def test_a_stage_without_variants_is_itself():
    config = composed()
    assert list(variants("train-sae", config)) == [("train-sae", config)]


def test_every_file_is_a_variant_that_equals_selecting_it():
    config = composed(run={"traces": ["noise", "semantic_pair", "token_replacement"]})
    for name, variant in variants("trace", config):
        selected = composed(trace=load_group("trace", name.removeprefix("trace:")))
        assert variant.trace == selected.trace


def test_the_report_asks_for_every_variant_once():
    config = composed(run={"traces": ["noise"]})
    names = [name for name, _ in variants("trace", config, every=True)]
    assert names[0] == "trace:noise"
    assert sorted(names) == sorted(f"trace:{path.stem}" for path in (config_dir() / "trace").glob("*.yaml"))


def test_what_an_experiment_sets_holds_for_all_variants():
    config = composed(trace={**load_group("trace", "noise"), "max_samples": 7}, intervention={"n_controls": 3})
    assert {variant.trace.max_samples for _, variant in variants("trace", config)} == {7}
    assert {variant.intervention.n_controls for _, variant in variants("intervene", config)} == {3}


def test_nothing_of_the_selected_variant_leaks_into_another():
    config = composed(intervention=load_group("intervention", "combine"))
    found = {name: variant.intervention for name, variant in variants("intervene", config)}
    assert found["intervene:ablate"].strengths == InterventionConfig().strengths
    assert found["intervene:combine"].strength == load_group("intervention", "combine")["strength"]


def test_typed_overrides_win_in_every_variant():
    typed = ["intervention.n_features=5", "seed=1"]
    found = [variant.intervention for _, variant in variants("intervene", composed(), typed)]
    assert [entry.n_features for entry in found] == [5] * 5
    assert dataclasses.asdict(found[0]) != dataclasses.asdict(found[1])


def test_an_unknown_variant_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"trace=dream; there are .*noise, .*semantic_pair, .*token_replacement"):
        list(variants("trace", composed(run={"traces": ["dream"]})))
