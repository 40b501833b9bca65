#!/usr/bin/env python
"""Train toy_llava on the shapes world, evaluate the stored weights, and write a checkpoint folder.

    python scripts/train_toy_llava.py --out outputs/toy_llava --seed 0

A killed run continues where it was last saved when it is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging as transformers_logging

from cmma.console import say
from cmma.testbed.training.evaluate_llava import evaluate
from cmma.testbed.training.llava import train_turns
from cmma.testbed.training.llava_data import HARD_FROM, HARD_KINDS
from cmma.testbed.training.loop import Recipe
from cmma.testbed.training.toy_llava import build_model, save_folder
from cmma.testbed.training.vision import pretrain_vision

VISION = Recipe(steps=900, batch=128, lr=2e-3)
TURNS = Recipe(  # planned for 3,300 steps; at step 1,800 the end was moved to step 2,200
    steps=2200, batch=24, lr=2e-3, slow=0.3, slow_prefix="model.vision_tower", warmup=150,
    horizons=((0, 3300), (1800, 2200)),
)  # fmt: skip
EVALUATION_SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the final weights")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the training data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="do not compile (slower; the numbers differ by rounding)")
    parser.add_argument("--evaluate-only", action="store_true", help="measure OUT/weights again, train nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = args.out / "weights"
    if args.evaluate_only:
        measure(weights, n_images=500, n_captions=500)
        return

    model = build_model(args.seed)
    minutes = {
        "vision": pretrain_vision(model.model.vision_tower, VISION, args.seed, args.out / "vision.safetensors"),
        "turns": train_turns(
            model, TURNS, args.seed, args.out / "turns.safetensors",
            preview=lambda: preview(model, args.out / "preview"), compile_layers=not args.eager,
        ),
    }  # fmt: skip
    save_folder(model, weights)
    recipe = {
        "seed": args.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": {"vision": asdict(VISION), "turns": asdict(TURNS)},
        "question_kinds": {"uniform_before_step": HARD_FROM, "weights_from_then_on": HARD_KINDS},
        "minutes": {name: round(value, 1) for name, value in minutes.items()},
        "device": f"{args.threads} CPU thread(s), {platform.machine()}",
        "torch": torch.__version__.split("+")[0],
        "command": f"python scripts/train_toy_llava.py --out DIR --seed {args.seed}",
    }
    (weights / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    measure(weights, n_images=500, n_captions=500)


def preview(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Store the averaged weights and print how they do on a few balanced images."""
    save_folder(model, folder)
    measure(folder, n_images=50, n_captions=50)


def measure(folder: Path, n_images: int, n_captions: int) -> None:
    """Evaluate the stored weights and write `metrics.json` beside them."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    metrics = evaluate(model, LlavaProcessor.from_pretrained(folder), n_images, n_captions, EVALUATION_SEED)
    report = {"seed": EVALUATION_SEED, "interval": "95% percentile bootstrap over images, 10,000 resamples"} | metrics
    (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    for group, estimates in metrics.items():
        cells = (f"{name} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for name, e in estimates.items())
        say(f"{group}: " + ", ".join(cells))


if __name__ == "__main__":
    main()
