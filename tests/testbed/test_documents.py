"""docs/testbed.md states what lies beside the weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cmma.testbed.training.job import JOBS

SCRIPT = Path(__file__).parents[2] / "scripts" / "testbed_results.py"


def test_the_document_states_the_stored_metrics_of_every_model():
    spec = importlib.util.spec_from_file_location("testbed_results", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.DOCUMENT.read_text(encoding="utf-8")
    assert {found["name"] for found in script.SECTION.finditer(text)} == set(JOBS)
    assert script.rewritten(text) == text
