"""Time of an interaction graph on toy_llava: against the plain way, and as the number of features grows.

    python benchmarks/bench_cmig.py [--features 64,128,256,512 --samples 200 --plain-pairs 40 --clock wall]

The plain way runs two whole forward passes for every pair and sample, E(do(i)) and E(do(i, j)), each with one edit in the
model and as many samples per pass as ours has rows; it is timed on some pairs, interleaved with ours on the same samples, and
multiplied. The largest difference of the two is printed. The dictionary is an untrained TopK: what a pass costs does not
depend on training, only how often features are active, and that is printed too.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from cmma.causal.queries import question_queries
from cmma.causal.readout import batches, collate_queries
from cmma.causal.rivals import prepare_readout
from cmma.cmig.inference import edge_table
from cmma.cmig.measuring import Interactions
from cmma.cmig.screening import choose_pairs
from cmma.config import load_group
from cmma.hooks.streams import splice
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LAYER, N_LATENTS, K_ACTIVE = 6, 1024, 32


def densest(model, sae, queries, n: int) -> tuple[int, ...]:
    """The features that are active in most samples."""
    every = Interactions(model, sae, LAYER, tuple(range(sae.n_latents)), None)
    active_BK = every._ablation_without_readout(queries)
    return tuple(sorted(np.argsort(-active_BK.sum(0), kind="stable")[:n].tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="64,128,256,512")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--pairs-per-feature", type=int, default=32)
    parser.add_argument("--random-pairs", type=int, default=1000)
    parser.add_argument("--plain-pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
