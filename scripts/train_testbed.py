#!/usr/bin/env python
"""Train a small model of the testbed on the shapes world, store it and measure what was stored.

    python scripts/train_testbed.py toy_llava --out outputs/testbed/toy_llava
    python scripts/train_testbed.py toy_llava --out outputs/testbed/toy_llava --evaluate-only

A killed run goes on from its last checkpoint when it is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from cmma.console import say
from cmma.errors import CmmaError
from cmma.testbed.training.job import JOBS, find_job, measure, train_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(JOBS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints; the model goes to OUT/weights")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the training data")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--evaluate-only", action="store_true", help="measure OUT/weights again, train nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        job = find_job(args.model)
        if args.evaluate_only:
            measure(job, args.out / "weights")
        else:
            say(f"weights: {train_model(job, args.out, args.seed, args.device)}")
    except CmmaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
