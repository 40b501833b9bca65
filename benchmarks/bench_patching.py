"""Activation patching against one forward pass per patch, and the largest difference between the two.

    python benchmarks/bench_patching.py [--model toy_llava --cases 32 --plain 4 --rounds 5 --rows 96 --clock wall]

Sweeps over semantic image pairs: the residual stream at every layer and every text position (and at every position),
and every head of every layer at the last token, at every text position together, and everywhere. The plain way is a
hook that writes the clean activations and one whole pass for each cell; its clean activations come from one pass, as
ours do. Rounds are interleaved and medians are printed, so that other load on the machine hits both alike; `--clock
cpu` counts the process's CPU seconds instead, for a machine that is shared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from cmma.causal.corruptions import contrast_runs
from cmma.causal.modules import head_parts
from cmma.causal.patching import Part, Positions, Run, activation_patch
from cmma.causal.positions import position_groups
from cmma.causal.queries import image_pair_contrasts
from cmma.causal.readout import Readout, make_readout
from cmma.config import load_group
from cmma.hooks import Trace
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.models.sites import Site
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Rows = Mapping[str, tuple[Part, ...]]


@torch.no_grad()
def one_pass_per_patch(
    model: MultimodalModel, cases: Sequence[tuple[Run, Run]], rows: Rows, groups: Sequence[Positions], readout: Readout
) -> list[float]:
    """Score of every cell, in the order case, row, group: a forward hook and a whole pass for each."""
    sites = list(dict.fromkeys(part.site for parts in rows.values() for part in parts))
    scores = []
    for (clean, corrupt), positions in zip(cases, groups, strict=True):
        with Trace(model, sites) as acts:
            readout(clean.batch, [clean.query])
        for (part,) in rows.values():
            for where_P in positions.values():
                handle = write(model.site(part.site), acts[part.site], part.channels, where_P)
                scores.append(float(readout(corrupt.batch, [corrupt.query])))
                handle.remove()
    return scores


def write(site: Site, clean_1SD: Tensor, channels: slice, where_P: Tensor) -> RemovableHandle:
    """Write clean activations to some positions and channels of a site, by a plain hook."""

    def put(value: Tensor) -> Tensor:
        patched = value.clone()
        patched[:, where_P, channels] = clean_1SD[:, where_P, channels]
        return patched

    if site.port == "input":
        return site.module.register_forward_pre_hook(lambda _, args: (put(args[0]), *args[1:]))
    return site.module.register_forward_hook(lambda _, __, output: put(output))


def ours(
    model: MultimodalModel, cases: Sequence[tuple[Run, Run]], rows: Rows, groups: Sequence[Positions], readout: Readout,
    size: int,
) -> list[float]:  # fmt: skip
    """The engine's scores, in the same order."""
    clean, corrupt = zip(*cases, strict=True)
    result = activation_patch(model, clean, corrupt, rows, groups, readout, rows_per_forward=size)
    return [
        float(result.score_CRG[case, row, result.groups.index(name)])
        for case, positions in enumerate(groups) for row in range(len(rows)) for name in positions
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy_llava")
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--plain", type=int, default=4, help="cases, of the first ones, that the plain way is timed on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=96, help="trace.rows_per_forward")
    parser.add_argument("--sweep", default="", help="only the sweeps whose name begins so")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = load_model(ModelSpec(**load_group("model", options.model)))
    readout = make_readout(model, "auto", "logit_difference")
    pairs = generate_samples("pairs", 0, 2 * options.cases)
    cases = [contrast_runs(model, contrast) for contrast in image_pair_contrasts(pairs)]
    sweeps = {name: sweep for name, sweep in make_sweeps(model, cases).items() if name.startswith(options.sweep)}
    clock = CLOCKS[options.clock]
    print(f"{options.model}, {options.cases} pairs ({options.plain} in the plain way), {options.threads} threads, "
          f"{options.clock} clock, median of {options.rounds}")
    print(f"{'sweep':36s} {'cells':>7s} {'one each':>11s} {'ours':>9s} {'ratio':>6s} {'difference':>12s}")
    for name, (rows, groups) in sweeps.items():
        ways: dict[str, Callable[[], list[float]]] = {
            "plain": lambda rows=rows, groups=groups: one_pass_per_patch(
                model, cases[: options.plain], rows, groups[: options.plain], readout),
            "ours": lambda rows=rows, groups=groups: ours(model, cases, rows, groups, readout, options.rows),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        scores: dict[str, list[float]] = {}
        ways["ours"]()  # warms up
        for _ in range(options.rounds):
            for way, measure in ways.items():
                start = clock()
                scores[way] = measure()
                seconds[way].append(clock() - start)
        each = {way: [spent / len(scores[way]) for spent in seconds[way]] for way in ways}
        ratio = statistics.median(a / b for a, b in zip(each["plain"], each["ours"], strict=True))
        gap = np.abs(np.subtract(scores["plain"], scores["ours"][: len(scores["plain"])])).max()
        plain, quick = (1e3 * statistics.median(each[way]) for way in ("plain", "ours"))
        print(f"{name:36s} {len(scores['ours']):7d} {plain:11.2f} {quick:9.2f} {ratio:6.1f} {gap:12.1e}", flush=True)
    print("ms per cell, clean and corrupt runs included")


def make_sweeps(model: MultimodalModel, cases: Sequence[tuple[Run, Run]]) -> dict[str, tuple[Rows, list[Positions]]]:
    """Name → rows, and the position groups of each case, in the first stream of the model."""
    stream = model.streams[0]
    residual = {name: (Part(name),) for name in model.site_names() if _is(name, stream, "resid_post")}
    heads = {
        f"{name} {number}": (part,)
        for name in model.site_names() if _is(name, stream, "heads")
        for number, part in enumerate(head_parts(model, name))
    }  # fmt: skip
    texts = [position_groups(model, *case, stream, "none", "each") for case in cases]
    every = [position_groups(model, *case, stream, "each", "each") for case in cases]
    last = [{"last": groups["last"]} for groups in texts]
    text = [{"text": torch.cat(list(groups.values()))} for groups in texts]
    anywhere = [{"everything": torch.arange(clean.batch["input_ids"].shape[1])} for clean, _ in cases]
    return {
        "residual: layers × text positions": (residual, texts),
        "residual: layers × positions": (residual, every),
        "heads: layers × heads, last token": (heads, last),
        "heads: layers × heads, all text": (heads, text),
        "heads: layers × heads, everywhere": (heads, anywhere),
    }


def _is(name: str, stream: str, port: str) -> bool:
    return name.startswith(f"{stream}.layers.") and name.endswith(f".{port}")


if __name__ == "__main__":
    main()
