"""How well the scene parser reads held-out scenes, clean and degraded.

    python -m cmma.testbed.measure_parser --scenes 2000
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageFilter

from cmma.testbed.language import relations
from cmma.testbed.parser import ATTRIBUTES, ParsedScene, parse_images
from cmma.testbed.render import render
from cmma.testbed.scenes import Scene
from cmma.testbed.training.bootstrap import Estimate, image_ratio
from cmma.testbed.world import sample_scenes

SPLIT, SEED = "balanced", 1000


def _noise(sd: float) -> Callable[[np.ndarray], np.ndarray]:
    def degrade(images_NYXC: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(SEED).normal(0, sd, images_NYXC.shape)
        return np.clip(np.rint(images_NYXC + noise), 0, 255).astype(np.uint8)

    return degrade


def _blur(sd: float) -> Callable[[np.ndarray], np.ndarray]:
    blurred = ImageFilter.GaussianBlur(sd)
    return lambda images_NYXC: np.stack([np.asarray(Image.fromarray(i).filter(blurred)) for i in images_NYXC])


def _jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def compress(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
        return np.asarray(Image.open(file))

    return lambda images_NYXC: np.stack([compress(image) for image in images_NYXC])


DEGRADATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "clean": lambda images_NYXC: images_NYXC,
    "noise, sd 20": _noise(20), "noise, sd 40": _noise(40), "noise, sd 60": _noise(60),
    "blur, sd 0.5": _blur(0.5), "blur, sd 1": _blur(1.0), "blur, sd 1.5": _blur(1.5),
    "jpeg, quality 90": _jpeg(90), "jpeg, quality 75": _jpeg(75), "jpeg, quality 50": _jpeg(50),
}  # fmt: skip
"""Name → uint8 images → degraded ones. Noise and blur in grey levels and pixels; JPEG without chroma subsampling."""


def parser_accuracy(n_scenes: int, degradation: str = "clean") -> dict[str, Estimate]:
    """Parse `n_scenes` held-out scenes (balanced split, seed 1000) and compare with the truth; see `compare`."""
    scenes = sample_scenes(n_scenes, SPLIT, SEED)
    images_NYXC, _ = render(scenes)
    parsed = parse_images(DEGRADATIONS[degradation](images_NYXC))
    return compare(parsed, [scenes.scene(i) for i in range(n_scenes)])


def compare(parsed: Sequence[ParsedScene], truth: Sequence[Scene]) -> dict[str, Estimate]:
    """Accuracy of parsed scenes, with intervals over images. An attribute that is None counts as wrong.

    Returns:
        precision, recall: of objects as such, a match being an object in the same cell; shape, color, size, texture:
        of all true objects, those with this attribute right; objects: with all four right; scenes: images with exactly
        the true objects, all right; relations_precision, relations_recall: statements "name relation name".
    """
    counts: dict[str, list[tuple[int, int]]] = {}
    for found, scene in zip(parsed, truth, strict=True):
        at = {thing.cell: thing for thing in found.objects}
        hits = [
            {name: getattr(at[t.cell], name) == getattr(t, name) for name in ATTRIBUTES} for t in scene if t.cell in at
        ]
        complete = sum(all(hit.values()) for hit in hits)
        stated = {(found.objects[i].name, name, found.objects[j].name) for i, name, j in found.relations}
        true = {(scene[i].name, name, scene[j].name) for i, name, j in relations(scene)}
        row = {
            "precision": (len(hits), len(found.objects)),
            "recall": (len(hits), len(scene)),
            **{name: (sum(hit[name] for hit in hits), len(scene)) for name in ATTRIBUTES},
            "objects": (complete, len(scene)),
            "scenes": (int(complete == len(scene) == len(found.objects)), 1),
            "relations_precision": (len(stated & true), len(stated)),
            "relations_recall": (len(stated & true), len(true)),
        }
        for name, pair in row.items():
            counts.setdefault(name, []).append(pair)
    return {name: image_ratio(*np.array(pairs).T) for name, pairs in counts.items()}


def main() -> None:
    """Print one line of JSON per degradation: metric → value, interval, n."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--scenes", type=int, default=2000)
    n_scenes = options.parse_args().scenes
    for degradation in DEGRADATIONS:
        print(json.dumps({"images": degradation, **parser_accuracy(n_scenes, degradation)}))


if __name__ == "__main__":
    main()
