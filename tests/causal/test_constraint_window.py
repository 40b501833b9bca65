"""Windows of layers restored at a replaced constraint: the best window, and the groups it is restored at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.method_configs import ConstraintWindowConfig
from cmma.causal.methods.constraint_window import _best, _smallest, run
from cmma.causal.positions import constraint_groups
from cmma.causal.result import PatchResult
from cmma.config import load_group
from cmma.errors import ConfigError
from cmma.models import load_model
from cmma.models.spec import ModelSpec


@pytest.fixture(scope="module")
def toy():
    """Reads words, so that questions of as many words have as many tokens."""
    return load_model(ModelSpec(**load_group("model", "toy_blip")))


def test_the_constraint_is_the_words_that_differ():
    """BOS, two patches, "is there a red ring ?" with "red" replaced, and an answer."""
    modality = torch.tensor([-1, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    differs = torch.zeros(10, dtype=torch.bool)
    differs[6] = True
    groups = constraint_groups(modality, end=8, differs_S=differs)
    assert {name: where.tolist() for name, where in groups.items()} == {
        "constraint": [6], "other words": [3, 4, 5, 7], "last": [8]
    }  # fmt: skip


def test_the_layer_is_chosen_on_one_half_and_measured_on_the_other():
    """Six images, total effect 1; width 1 is best at layer 1 on images 0, 2, 4, where the others recover 0.2."""
    score = np.zeros((6, 4, 1))
    score[::2, 1], score[1::2, 1] = 0.9, np.array([[0.1], [0.2], [0.3]])
    score[1::2, 0] = 0.8  # better on the measured half, which must not choose
    score[:, 2], score[:, 3] = 0.6, 0.5
    rows = ("width 1, layer 0", "width 1, layer 1", "width 3, layer 0", "width 3, layer 1")
    result = PatchResult(
        rows, ("constraint",), tuple("abcdef"), score, np.zeros(6), np.ones(6), np.ones(6, dtype=bool), True, "p"
    )
    best = _best(result, "one constraint", seed=0)
    assert [row[:4] for row in best] == [("one constraint", "constraint", 1, 1), ("one constraint", "constraint", 3, 0)]
    assert best[0][4] == pytest.approx(0.2)
    assert best[0][5] <= 0.2 <= best[0][6]
    assert [row[-1] for row in best] == [3, 3]
    config = TraceConfig(method="constraint_window", constraint_window=ConstraintWindowConfig(shares=[0.1, 0.5, 0.9]))
    assert _smallest(best, config) == {"constraint": {"10%": 1, "50%": 3, "90%": None}}


def test_windows_of_a_model_that_reads_words(toy, pairs, capsys):
    """Four layers hold no window of 6."""
    options = ConstraintWindowConfig(widths=[1, 4, 6], one=["count"], two=["referent"])
    config = TraceConfig(
        method="constraint_window", module="residual", max_samples=6, correct_only=False, constraint_window=options
    )
    found = run(toy, pairs, config)
    assert "widths 6 left out" in capsys.readouterr().out
    table = found.tables["one_constraint"]
    assert set(table["width"]) == {1, 4}
    assert set(table["group"]) == {"CLS", "constraint", "other words", "last"}
    assert len(table) == 2 * 4 * 4
    assert found.summary["one"]["sets"] == ["count"]
    assert {figure.title for figure in found.figures} >= {"best window of each width"}


def test_what_has_no_windows_is_one_clear_line(toy, tiny_clip, pairs):
    with pytest.raises(ConfigError, match="tiny clip answers none"):
        run(tiny_clip, pairs, TraceConfig(method="constraint_window"))
    with pytest.raises(ConfigError, match=r"trace\.module=head"):
        run(toy, pairs, TraceConfig(method="constraint_window", module="head"))
    with pytest.raises(ConfigError, match="all above 4, the depth of the text stream of toy_blip"):
        run(toy, pairs, TraceConfig(method="constraint_window",
                                    constraint_window=ConstraintWindowConfig(widths=[6, 9])))
    with pytest.raises(ConfigError, match="at least one width"):
        ConstraintWindowConfig(widths=[])
