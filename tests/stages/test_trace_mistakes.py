"""Mistakes in a trace, through the command: one line that says what is wrong, the promised status, no traceback."""

from __future__ import annotations

import pytest

DATA = ["dataset.n_train=2", "dataset.n_balanced=6", "dataset.n_counter=2", "dataset.n_pairs=4"]
RANDOM = ["model.weights=random", "model.source=''", "model.architecture=llava-tiny", "model.n_layers=4"]


@pytest.fixture(scope="module")
def outputs(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    status, printed = command(folder, "prepare-data", *DATA)
    assert status == 0, printed
    return folder


@pytest.mark.parametrize(("words", "status", "said"), [
    pytest.param(["trace.noise.site=language.layer.3"], 2, ["no site 'language.layer.3'", "language.layers.3.mlp_out"],
                 id="a wrong site"),
    pytest.param(["trace.positions=[subject]"], 2, ["no position group 'subject'", "last-1"],
                 id="a token group of no model"),
    pytest.param(["trace=semantic_pair", "model=toy_clip", "trace.positions=[last-2]"], 2,
                 ["no position group 'last-2'", "CLS"], id="a token group of another model"),
    pytest.param(["trace=knockout", "trace.knockout.flows=[subject->last]"], 2, ["subject"],
                 id="a token group of no flow"),
    # The byte tokenizer of random weights sees "red" and "blue" as 3 and 4 tokens. Data, not configuration: status 4.
    pytest.param(["trace=token_replacement", *RANDOM], 4, ["number of tokens", "a pair must agree"],
                 id="pairs of unequal length"),
])  # fmt: skip
def test_a_mistake_is_one_line(command, outputs, words, status, said):
    found, printed = command(outputs, "trace", *DATA, "trace.max_samples=4", *words)
    assert found == status, printed
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("cmma: ")
    assert all(text in last for text in said), last


def test_a_corruption_that_does_not_corrupt_is_one_line(command, outputs):
    """The trace is finished, as its numbers are right; the line says that they mean little."""
    words = ["trace.noise.scale=1e-9", "trace.layers=[0]", "trace.text_positions=none", "trace.max_samples=4"]
    status, printed = command(outputs, "trace", *DATA, *words)
    assert status == 0, printed
    said = [line for line in printed.splitlines() if "cannot be told from none" in line]
    assert len(said) == 1
    assert "take a stronger corruption" in said[0]
