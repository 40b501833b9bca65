#!/usr/bin/env python
"""Train toy_clip on the shapes world, evaluate the stored weights, and write a checkpoint folder.

    python scripts/train_toy_clip.py --out outputs/toy_clip --seed 0

A killed run continues where it was last saved when it is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from cmma.console import say
from cmma.testbed.training.clip import pretrain_image_tower, train_contrast
from cmma.testbed.training.evaluate_clip import retrieval
from cmma.testbed.training.loop import Recipe
from cmma.testbed.training.toy_clip import build_config, build_model, save_folder

VISION = Recipe(steps=250, batch=96, lr=2e-3, warmup=40)
CONTRAST = Recipe(steps=600, batch=128, lr=2e-3, warmup=50)
EVALUATION_SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the final weights")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the training data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-only", action="store_true", help="measure OUT/weights again, train nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = args.out / "weights"
    if args.evaluate_only:
        measure(weights, n_images=2000)
        return

    config = build_config()
    model = build_model(args.seed, config)

    def preview() -> None:
        save_folder(model, config, args.out / "preview")
        measure(args.out / "preview", n_images=200)

    minutes = {
        "vision": pretrain_image_tower(model, VISION, args.seed, args.out / "vision.safetensors"),
        "contrast": train_contrast(model, CONTRAST, args.seed, args.out / "contrast.safetensors", preview),
    }
    save_folder(model, config, weights)
    recipe = {
        "seed": args.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": {"vision": asdict(VISION), "contrast": asdict(CONTRAST)},
        "minutes": {name: round(value, 1) for name, value in minutes.items()},
        "device": f"{args.threads} CPU thread(s), {platform.machine()}",
        "torch": torch.__version__.split("+")[0],
        "command": f"python scripts/train_toy_clip.py --out DIR --seed {args.seed}",
    }
    (weights / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    measure(weights, n_images=2000)


def measure(folder: Path, n_images: int) -> None:
    """Evaluate the stored weights and write `metrics.json` beside them."""
    metrics = retrieval(folder, n_images, EVALUATION_SEED)
    report = {"seed": EVALUATION_SEED, "interval": "95% percentile bootstrap over images, 10,000 resamples"}
    (folder / "metrics.json").write_text(json.dumps(report | {"retrieval_balanced": metrics}, indent=2) + "\n")
    say(", ".join(f"{name} {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for name, e in metrics.items()))


if __name__ == "__main__":
    main()
