"""Time of a training step in units of one B·d·K matrix product of the same process.

    python benchmarks/bench_sae.py [--batch 2048 --d 512 --n-latents 8192 --k 32 --rounds 9 --clock wall]

Everything is interleaved and medians are printed, so that other load on the machine hits all rows alike. `--clock cpu`
counts the process's CPU seconds instead, for a machine that is shared. Five products are the bound of a dense step
(encode, decode, and three in the backward pass).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import OptimConfig, preset
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.trainer import Trainer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
N_LABELS = 32


def bare_step(batch: RecordBatch, d: int, n_latents: int) -> Callable[[], None]:
    """What a few lines of plain autograd cost: linear, ReLU, linear, squared error and L1, fused Adam."""
    encoder, decoder = nn.Linear(d, n_latents), nn.Linear(n_latents, d)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4, fused=True)

    def step() -> None:
        latents_BK = encoder(batch.acts_BD).relu()
        error = (decoder(latents_BK) - batch.acts_BD).square().sum(1).mean()
        (error + 1e-3 * latents_BK.sum(1).mean()).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def trainer_step(batch: RecordBatch, arch: str, **config: object) -> Callable[[], object]:
    """Our whole step: standardise, encode, decode, every term, backward, project, Adam, project."""
    d = batch.acts_BD.shape[1]
    sae = build_sae(preset(arch, revive="none", **config), d, Standardiser.identity((d,)))
    trainer = Trainer(sae, OptimConfig(batch=len(batch), steps=10_000), len(batch), N_LABELS)
    return lambda: trainer.advance(batch)


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

    records = torch.randn(options.batch, options.d)
    batch = RecordBatch(
        records, torch.arange(options.batch).remainder(2).to(torch.int8), torch.arange(options.batch),
        torch.zeros(options.batch, dtype=torch.long), None, (torch.rand(options.batch, N_LABELS) < 0.1).float(),
    )
    weight_KD = torch.randn(options.n_latents, options.d)
    size = {"n_latents": options.n_latents}
    rows: dict[str, Callable[[], object]] = {
        "one B·d·K product": lambda: records @ weight_KD.T,
        "bare dense autograd": bare_step(batch, options.d, options.n_latents),
        "standard": trainer_step(batch, "standard", **size),
        "msae without MI": trainer_step(batch, "msae", lambda3=0.0, **size),
        "msae": trainer_step(batch, "msae", **size),
        f"topk, k={options.k}": trainer_step(batch, "topk", k=options.k, **size),
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


if __name__ == "__main__":
    main()
