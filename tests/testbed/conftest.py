"""An independent reading of scenes and questions."""

from __future__ import annotations

import pytest
import torch

from cmma.testbed.language import NUMBERS
from cmma.testbed.scenes import SHAPES

PLURAL = {f"{s}s": s for s in SHAPES} | {"crosses": "cross"}
SIDES = {
    "left of": lambda a, b: a["cell"] % 3 < b["cell"] % 3,
    "right of": lambda a, b: a["cell"] % 3 > b["cell"] % 3,
    "above": lambda a, b: a["cell"] // 3 < b["cell"] // 3,
    "below": lambda a, b: a["cell"] // 3 > b["cell"] // 3,
}


def matching(objects: list[dict], words: list[str]) -> list[dict]:
    """Objects of which every word is true; "object" and "objects" are true of all."""
    words = [PLURAL.get(word, word) for word in words if word not in ("object", "objects")]
    return [o for o in objects if all(w in (o["shape"], o["color"], o["size"], o["texture"]) for w in words)]


def brute_force(objects: list[dict], question: str) -> str:
    """The answer by trying every object; raises if the question has not exactly one answer."""
    words = question.rstrip("?").split()
    if words[:3] == ["is", "there", "no"]:
        return "no" if matching(objects, words[3:]) else "yes"
    if words[4:5] in (["and"], ["or"]):
        found = [bool(matching(objects, [word])) for word in (words[3], words[6])]
        return "yes" if (all(found) if words[4] == "and" else any(found)) else "no"
    if words[:2] == ["is", "there"]:
        return "yes" if matching(objects, words[3:]) else "no"
    if words[:2] == ["how", "many"]:
        return NUMBERS[len(matching(objects, words[2:-2]))]
    if words[0] == "what" and words[2] == "is":
        (only,) = matching(objects, words[4:])
        return only[words[1]]
    relation = next(name for name in SIDES if f" {name} the " in question)
    left, right = question.rstrip("?").split(f" {relation} the ")
    (anchor,) = matching(objects, right.split())
    if words[0] == "what":
        (only,) = [o for o in objects if SIDES[relation](o, anchor)]
        return f"{only['color']} {only['shape']}"
    (subject,) = matching(objects, left.split()[2:])
    return "yes" if SIDES[relation](subject, anchor) else "no"


@pytest.fixture(name="brute_force", scope="session")
def _brute_force():
    """(objects, question) → the answer, found by trying every object."""
    return brute_force


@pytest.fixture(name="assert_resumes")
def _assert_resumes(tmp_path):
    """(train, kill_at): `train(folder, tick)` → weights; killed at its `kill_at`-th tick it goes on to the same."""

    class Killed(Exception):
        pass

    def run(train, folder, kill_at=None):
        ticks = []

        def tick():
            ticks.append(1)
            if len(ticks) == kill_at:
                raise Killed

        folder.mkdir(exist_ok=True)
        return train(folder, tick)

    def check(train, kill_at):
        undisturbed = run(train, tmp_path / "undisturbed")
        with pytest.raises(Killed):
            run(train, tmp_path / "killed", kill_at)
        resumed = run(train, tmp_path / "killed")
        assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)

    return check
