"""cmma baselines from beginning to end, at the smallest size that still does everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmma.artifacts.store import Artifact
from cmma.baselines.config import COMPARISONS, RANDOM, BaselinesConfig
from cmma.config import ActivationsConfig, Config, DatasetConfig, LaunchConfig, PathsConfig, load_group
from cmma.control.config import ControlConfig
from cmma.errors import ConfigError, MissingParent
from cmma.mitigation.config import MitigationConfig
from cmma.models.spec import ModelSpec, model_folder
from cmma.report.comparison import tables
from cmma.sae.config import OptimConfig, SAEConfig
from cmma.stages.keys import Keys
from cmma.stages.report_inputs import gather
from cmma.stages.runner import open_parents, outputs_folder, run_stage


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    if not list(model_folder("builtin:toy_llava").glob("*.safetensors")):
        pytest.skip("toy_llava's weights are not here")
    config = Config(
        model=ModelSpec(**load_group("model", "toy_llava")), layer=1,
        dataset=DatasetConfig(n_train=40, n_balanced=24, n_counter=8, n_pairs=2),
        activations=ActivationsConfig(layers=[1], held_out=0.3), sae=SAEConfig(n_latents=64, lambda1=0.3),
        optim=OptimConfig(batch=256, steps=10, warmup=2), launch=LaunchConfig(threads=1),
        paths=PathsConfig(outputs=str(tmp_path_factory.mktemp("outputs"))),
        baselines=BaselinesConfig(
            n_selection=8, n_measured=6, n_objects=0, ig_steps=1, unit_counts=[2], direction_strengths=[1.0],
            n_bootstrap=50, hidden=4,
            mitigation=MitigationConfig(
                n_calibration=4, n_held_out=3, strengths=[1.0], head_counts=[1], n_questions=4, max_new_tokens=40),
            control=ControlConfig(
                dimensions=["style"], n_selection=8, max_samples=6, n_tuning=2, n_features=[4], strengths=[1.0],
                n_controls=1, max_new_tokens=40),
        ),
    )  # fmt: skip
    for stage in ("prepare-data", "cache-activations", "train-sae"):
        run_stage(stage, config)
    return config


@pytest.fixture(scope="module")
def made(config) -> Artifact:
    with pytest.raises(MissingParent, match=r"run: cmma train-sae sae.arch=standard sae.lambda2=0 sae.lambda3=0"):
        run_stage("baselines", config)
    run_stage("train-sae", replace(config, sae=replace(config.sae, arch="standard", lambda2=0.0, lambda3=0.0)))
    return run_stage("baselines", config)


def test_every_method_has_a_number_or_a_reason_everywhere(made):
    table = made.read_table("baselines.parquet")
    methods = made.summary["methods"]
    assert (methods[0], methods[-1], len(methods)) == ("M-SAE", RANDOM, 10)
    for comparison, metric in (("interpretability", "detection AUROC"), ("interpretability", "mask IoU"),
                               ("hallucination", "object hallucination, change in %"), ("control", "success")):
        own = table[(table["comparison"] == comparison) & (table["metric"] == metric)]
        assert own["method"].tolist() == methods
        assert (np.isfinite(own["value"]) ^ (own["reason"] != "")).all()
    shared = table[table["metric"].isin(["detection AUROC", "success"]) & (table["reason"] == "")]
    assert shared.groupby("metric")["n"].nunique().eq(1).all()  # the same images for all
    assert "factor" in table[table["method"] == "attention heads"].set_index("metric")["reason"]["success"]


def test_budgets_are_recorded(config, made):
    budget = made.summary["budget"]
    assert (budget["labelled_images"], budget["measured_images"], budget["hallucination_settings"]) == (8, 6, 1)
    tried = made.read_table("tried_hallucination.parquet")
    assert tried.groupby("method").size().eq(1).all()
    assert made.summary["ours"]["detection AUROC"] >= 0


def test_the_report_has_the_table(config, made):
    _, parents = open_parents("report", config, outputs_folder(config))
    table = tables(gather(config, parents, []))["baselines"]
    assert [row.label for row in table.rows] == [*made.summary["methods"], "changed input"]
    assert table.columns[1:4] == ("detection AUROC", "mask IoU", "object hallucination, change in %")
    assert all(cell.artifact == made.key for cell in table.rows[0].cells)


def test_without_the_standard_sae_nothing_else_is_needed(config):
    alone = replace(config.baselines, methods=["msae"])
    assert set(Keys(replace(config, baselines=alone)).parents("baselines")) == {"train-sae"}


def test_settings_that_give_methods_unequal_chances_are_refused():
    with pytest.raises(ConfigError, match="same number of settings"):
        BaselinesConfig(direction_strengths=[1.0])
    with pytest.raises(ConfigError, match="lacks msae"):
        BaselinesConfig(methods=["pca"])
    assert BaselinesConfig().comparisons == list(COMPARISONS)
