"""`cmma benchmark` from any folder: aliases, the table on the terminal, the files, one line for a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def benchmark(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cmma.cli", "benchmark", *words], cwd=cwd, text=True, capture_output=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_a_list_of_methods_is_scored_beside_the_controls(tmp_path):
    """A small planted world, where two methods and three controls run in seconds."""
    result = benchmark(tmp_path, "task=planted", "method=topk,pca", "benchmark.seeds=2", "benchmark.scale=0.02",
                       "benchmark.planted.cosine=0.5", "seed=3", "launch.threads=1")
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip().splitlines()[-1].split(": ")[1])
    assert folder.parent == tmp_path / "outputs" / "benchmark" / "planted"
    assert sorted(path.name for path in folder.iterdir()) == ["table.csv", "table.json", "table.md"]
    written = json.loads((folder / "table.json").read_text())
    assert written["seeds"] == [3, 4]
    assert written["config"]["planted"]["cosine"] == 0.5
    assert list(written["rows"]) == ["topk", "pca", "untrained", "frozen_decoder", "shuffled"]
    for words in ("recall_shared", "chance", "shuffled", "Student t interval over 2 seeds"):
        assert words in result.stdout


def test_a_mistake_is_one_line(tmp_path):
    for word, expected in (("method=topk,guess", "method=guess"), ("task=poker", "task=poker"),
                           ("benchmark.planted.cosine=2", "planted.cosine=2")):
        result = benchmark(tmp_path, word)
        assert result.returncode == 2
        assert result.stderr.strip().count("\n") == 0
        assert expected in result.stderr
