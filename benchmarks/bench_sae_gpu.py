"""Training steps on a GPU in bfloat16: share of the matrix-product rate, tokens per second, peak memory.

    python benchmarks/bench_sae_gpu.py [--batch 8192 --d 4096 --n-latents 131072 --k 256 --rounds 20]

The rate is that of one B·d·K product in bfloat16 in the same run, interleaved with the steps; a dense step has five.
The default size is a dictionary of LLaVA-7B and takes 45 GB.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from bench_sae import CROSS_MODAL, make_batch, trainer_step
from peers import Step


def milliseconds(step: Step) -> float:
    """Time of one call on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--d", type=int, default=4096)
    parser.add_argument("--n-latents", type=int, default=131_072)
    parser.add_argument("--k", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_sae_gpu needs a CUDA device, and there is none here")
        return

    batch = make_batch(options.batch, options.d).to("cuda")
    records_BD = batch.acts_BD.bfloat16()
    weight_KD = torch.randn(options.n_latents, options.d, device="cuda", dtype=torch.bfloat16)
    common = {"precision": "bfloat16", "n_latents": options.n_latents}
    dense, sparse = "msae", f"topk, k={options.k}"
    rows: dict[str, Step] = {
        "one B·d·K product": lambda: records_BD @ weight_KD.T,
        dense: trainer_step(batch, "msae", **common, **CROSS_MODAL),
        sparse: trainer_step(batch, "topk", **common, k=options.k),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    peaks: dict[str, float] = {}
    for number in range(options.rounds + 3):
        for name, step in rows.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            elapsed = milliseconds(step)
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
            if number >= 3:  # the first rounds compile and warm up
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    unit = median["one B·d·K product"]
    print(f"{torch.cuda.get_device_name()}, B={options.batch} d={options.d} K={options.n_latents} bfloat16, median of "
          f"{options.rounds}; B×K float32 is {4e-9 * options.batch * options.n_latents:.2f} GB")
    print(f"{'step':24s} {'ms':>9s} {'products':>9s} {'tokens/s':>12s} {'GB above weights and moments':>30s}")
    for name, value in median.items():
        print(f"{name:24s} {value:9.2f} {value / unit:9.2f} {1e3 * options.batch / value:12.0f} {peaks[name]:30.2f}")
    print(f"{dense}: {5 * unit / median[dense]:.1%} of the rate of the product; {sparse}: "
          f"{median[dense] / median[sparse]:.2f} times as fast")


if __name__ == "__main__":
    main()
