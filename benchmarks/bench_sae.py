"""Time of a training step in units of one B·d·K matrix product of the same process, and its peak memory.

    python benchmarks/bench_sae.py [--batch 2048 --d 512 --n-latents 8192 --k 32 --rounds 9 --clock wall]

Everything is interleaved and medians are printed, so that other load on the machine hits all rows alike. `--clock cpu`
counts the process's CPU seconds instead, for a machine that is shared. Five products are the bound of a dense step
(encode, decode, and three in the backward pass), one is that of a TopK step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import torch
from peers import Step, bare_step, peer_steps

from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.trainer import Trainer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
N_LABELS = 32
CROSS_MODAL = {"lambda2": 5e-4, "lambda3": 2e-4}
SINGLE = {"lambda2": 0.0, "lambda3": 0.0}
STATUS = Path("/proc/self/status")


def make_batch(n: int, d: int) -> RecordBatch:
    """Noise, half visual and half textual, with labels."""
    return RecordBatch(
        torch.randn(n, d), torch.arange(n).remainder(2).to(torch.int8), torch.arange(n),
        torch.zeros(n, dtype=torch.long), None, (torch.rand(n, N_LABELS) < 0.1).float())


def trainer_step(batch: RecordBatch, arch: str, precision: str = "float32", **config: object) -> Step:
    """Our whole step: standardise, encode, decode, every term, backward, project, Adam, project."""
    d = batch.acts_BD.shape[1]
    sae = build_sae(preset(arch, revive="none", **config), d, Standardiser.identity((d,))).to(batch.acts_BD.device)
    optim = OptimConfig(batch=len(batch), steps=10_000, precision=precision)
    trainer = Trainer(sae, optim, len(batch), N_LABELS)
    return lambda: trainer.advance(batch)


def our_rows(k: int) -> dict[str, dict[str, object]]:
    """Name → architecture and options."""
    return {
        "standard": {"arch": "standard"},
        "msae, λ2 = λ3 = 0": {"arch": "msae", **SINGLE},
        "msae": {"arch": "msae", **CROSS_MODAL},
        f"topk, k={k}": {"arch": "topk", "k": k},
        f"topk, k={k}, cross-modal": {"arch": "topk", "k": k, **CROSS_MODAL},
        f"batchtopk, k={k}": {"arch": "batchtopk", "k": k},
    }


def peak_bytes(n: int, d: int, n_latents: int, threads: int, row: dict[str, object]) -> int:
    """Most resident memory of three steps above what a process has that did a small one. Linux; alone in a process."""
    torch.set_num_threads(threads)
    trainer_step(make_batch(8, 8), **{**row, "n_latents": 64})()
    batch, before = make_batch(n, d), _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step = trainer_step(batch, **{**row, "n_latents": n_latents})
    for _ in range(3):
        step()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))


def print_memory(options: argparse.Namespace, rows: dict[str, dict[str, object]]) -> None:
    """Each row's peak in bytes per parameter and in B×K float32 matrices, with the bound 16 B and three."""
    one_process = multiprocessing.get_context("spawn").Pool
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1048576"  # glibc gives large blocks back as soon as they are freed
    n_parameters = 2 * options.d * options.n_latents + options.n_latents + options.d
    print(f"\n{'peak memory':24s} {'MB':>9s} {'B×K matrices above 16 B per parameter (bound 3)':>50s}")
    for name, row in rows.items():
        sizes = (options.batch, options.d, options.n_latents, options.threads)
        with one_process(1) as pool:
            peak = pool.apply(peak_bytes, (*sizes, row))
        matrices = (peak - 16 * n_parameters) / (4 * options.batch * options.n_latents)
        print(f"{name:24s} {peak / 1e6:9.1f} {matrices:50.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--n-latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    batch, ours = make_batch(options.batch, options.d), our_rows(options.k)
    weight_KD = torch.randn(options.n_latents, options.d)
    rows: dict[str, Step] = {
        "one B·d·K product": lambda: batch.acts_BD @ weight_KD.T,
        "bare dense autograd": bare_step(batch.acts_BD, options.n_latents),
        **{name: trainer_step(batch, n_latents=options.n_latents, **row) for name, row in ours.items()},
        **peer_steps(batch.acts_BD, options.n_latents, options.k),
    }
    clock = CLOCKS[options.clock]
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(options.rounds + 1):
        for name, step in rows.items():
            start = clock()
            step()
            if number:  # the first round warms up
                seconds[name].append(clock() - start)
    unit = statistics.median(seconds["one B·d·K product"])
    print(f"B={options.batch} d={options.d} K={options.n_latents} fp32, {options.threads} threads, {options.clock} "
          f"clock, median of {options.rounds}")
    print(f"{'step':24s} {'ms':>9s} {'products':>9s}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:24s} {1e3 * median:9.1f} {median / unit:9.2f}")
    if STATUS.exists():
        print_memory(options, ours)


if __name__ == "__main__":
    main()
