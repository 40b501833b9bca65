"""The command line inside the test's own process, which has torch loaded already."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from cmma.cli import dispatch


@pytest.fixture(scope="session")
def command() -> Callable[..., tuple[int, str]]:
    """`command(outputs, "train-sae", "seed=1")` gives the exit status and what was printed."""

    def run(outputs: Path, *words: str) -> tuple[int, str]:
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
            patch.setattr(sys, "argv", ["cmma"])
            patch.setenv("HYDRA_FULL_ERROR", "1")
            patch.setenv("CMMA_OUTPUTS", str(outputs))
            status = dispatch(list(words))
        return status, printed.getvalue()

    return run
