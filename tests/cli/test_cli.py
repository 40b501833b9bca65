"""The command line: one clear line and the promised exit status for every mistake, and all of Hydra's own flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cmma.cli import STAGE_HELP
from cmma.config import Config, config_dir, load_config, schema, to_config
from cmma.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


def cmma(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder that is not the repository."""
    return subprocess.run(
        [sys.executable, "-m", "cmma.cli", *words], cwd=cwd, text=True, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )


def only_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr; fails when there are more, a traceback for example."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(("words", "status", "expected"), [
    (["train-sae", "sae.lambda_1=3"], 2, ["sae.lambda_1", "sae.lambda1"]),
    (["train-sae", "sae.k=many"], 2, ["sae.k", "many", "Integer"]),
    (["train-sae", "sae.k=0"], 2, ["sae.k=0", "at least 1"]),
    (["train-sae", "sae=gigantic"], 2, ["sae/gigantic", "msae", "topk"]),
    (["train-sae", "layer=99"], 2, ["layer=99", "activations.layers"]),
    (["train-sae", "sae.tau=[1"], 2, ["[1"]),
    (["cache-activations", "activations.layers=[77]"], 2, ["77", "layers 0 to 11"]),
    (["prepare-data", "dataset=folder", "dataset.path=no/such/folder"], 4, ["no/such/folder", "not a folder"]),
    (["run", "run.until=lunch"], 2, ["run.until=lunch", "train-sae"]),
    (["trian-sae"], 2, ["trian-sae", "train-sae"]),
    (["train-sae", "-m", "seed=0,1", "--cfg", "job"], 2, ["Only one of", "--multirun"]),
])
def test_a_mistake_is_one_line_that_names_it(tmp_path, words, status, expected):
    result = cmma(*words, cwd=tmp_path)
    line = only_line(result)
    assert result.returncode == status
    assert all(text in line for text in expected), line


def test_missing_parents_are_named_with_the_command_that_makes_them(tmp_path):
    result = cmma("train-sae", "model=llava13b", "sae.lambda1=3e-3", cwd=tmp_path)
    assert result.returncode == 3
    words = "model=llava13b sae.lambda1=3e-3"
    assert only_line(result).endswith(f"run: cmma prepare-data {words} && cmma cache-activations {words}")


def test_help_lists_every_stage_and_imports_nothing_heavy(tmp_path):
    program = (
        "import sys; sys.argv = ['cmma', '--help']\n"
        "from cmma.cli import dispatch\n"
        "assert dispatch(['--help']) == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'pandas', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, text=True, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in STAGE_HELP)


@pytest.mark.parametrize("stage", STAGE_HELP)
def test_every_stage_composes_and_prints_its_configuration(tmp_path, stage):
    result = cmma(stage, "--cfg", "job", "seed=7", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert OmegaConf.create(result.stdout).seed == 7


def test_composing_does_not_import_torch(tmp_path):
    program = (
        "import sys\n"
        "from cmma.hydra_app import run_with_hydra\n"
        "assert run_with_hydra('train-sae', ['--cfg', 'job']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, timeout=60, env=environment)
    assert result.returncode == 0, result.stderr


def test_hydra_flags_work_in_any_order(tmp_path):
    helped = cmma("train-sae", "--help", cwd=tmp_path)
    assert "sae: " in helped.stdout
    swept = cmma("train-sae", "sae=topk", "-m", "seed=0,1", cwd=tmp_path)
    assert swept.returncode == 3
    assert "cmma cache-activations sae=topk seed=0" in only_line(swept)


def test_completion_offers_stages_then_keys(tmp_path):
    def offered(line: str) -> list[str]:
        return cmma("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line).stdout.split()

    assert offered("cmma tr") == ["train-sae", "trace"]
    assert "sae.lambda1=" in offered("cmma train-sae sae.lam")
    assert "model=llava13b" in offered("cmma cache-activations model=lla")
    assert "complete" in cmma("-sc", "install=bash", cwd=tmp_path).stdout


NO_GROUPS = ("experiment", "hydra", "tables")  # of many sections, not ours, plans of runs (tests/stages/test_tables.py)
GROUPS = [
    (folder.name, path.stem)
    for folder in sorted(config_dir().iterdir()) if folder.is_dir() and folder.name not in NO_GROUPS
    for path in sorted(folder.glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_group_file_fits_the_schema(group, name):
    loaded = OmegaConf.load(config_dir() / group / f"{name}.yaml")
    loaded.pop("defaults", None)
    merged = OmegaConf.merge(schema(), {group: loaded})
    if loaded.get("path", "") is None or OmegaConf.is_missing(loaded, "path"):
        merged[group].path = "somewhere"
    assert isinstance(to_config(merged), Config)


def test_a_resolved_configuration_reads_back_equal(tmp_path):
    config = to_config(schema())
    path = tmp_path / "resolved.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert load_config(path) == config


def test_rules_between_values():
    with pytest.raises(ConfigError, match="rdzv_endpoint"):
        to_config(OmegaConf.merge(schema(), {"launch": {"kind": "torchrun", "nodes": 2}}))
    with pytest.raises(ConfigError, match=r"launch\.tp=4 does not divide the 6 processes"):
        to_config(OmegaConf.merge(schema(), {"launch": {"kind": "torchrun", "nproc": 6, "tp": 4}}))
