"""cross_attention_maps: DAAM (Tang et al. 2023, arXiv 2210.04885), judged by where the named objects really are.

The map of a token is its cross-attention probability at each spatial position, on the prompt's side of guidance, summed
over steps and averaged over blocks and heads; the map of a word is the mean of its tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cmma.causal.config import TraceConfig
from cmma.causal.cross_attention import noting_attention
from cmma.causal.findings import Dictionary, Findings
from cmma.console import progress
from cmma.control.scoring import facts_of_image, shows
from cmma.control.trials import ATTRIBUTES, Trial, token_span, words_of
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.figures import Gallery, Listing
from cmma.models.base import MultimodalModel
from cmma.statistics.bootstrap import bootstrap_mean
from cmma.testbed.parser import ParsedScene, parse_images
from cmma.testbed.render import render
from cmma.testbed.scenes import CANVAS, CELL, GRID, scenes_of


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Maps of the attribute words of images that show their prompt; summary: IoU and pointing accuracy of nouns.

    *IoU*: of the pixels above `threshold` of the map's maximum with the object that the parser finds. *Pointing*:
    whether the maximum lies in the object's cell; chance is one cell of nine. Both also against the other objects.

    Raises:
        ConfigError: the model makes no images. DataError: no sample is a scene, or no image shows its prompt.
    """
    if model.kind != "diffusion":
        raise ConfigError(f"{model.spec.name} has no cross-attention from an image that it makes; take model=toy_sd")
    options = config.cross_attention_maps
    scenes = [sample for sample in samples if sample.objects][: config.max_samples]
    rows: list[dict[str, object]] = []
    pictures: dict[str, Image.Image] = {}
    gallery: list[list[tuple[str, str]]] = []
    with progress("Making images and maps", total=len(scenes)) as bar:
        for start in range(0, len(scenes), config.rows_per_forward):
            some = scenes[start : start + config.rows_per_forward]
            images, maps_BSYX = attention_maps(model, some, options.steps, options.guidance)
            for sample, image, parsed, map_SYX in zip(some, images, parse_images(images), maps_BSYX, strict=True):
                if not shows(facts_of_image(parsed), Trial(sample, "shape", (0,), "")):
                    continue
                found, shown = _judge(model, sample, parsed, map_SYX, options.threshold)
                rows += found
                if len(gallery) < options.n_shown:
                    gallery.append([(f"images/{sample.key}.png", sample.caption)])
                    pictures[sample.key] = image
                    for word, heat in shown:
                        name = f"{sample.key}-{word.replace(' ', '-')}"
                        pictures[name] = _overlay(image, heat)
                        gallery[-1].append((f"images/{name}.png", word))
            bar.advance(len(some))
    if not rows:
        raise DataError(f"none of {len(scenes)} images shows its prompt as a scene; take dataset=shapes, model=toy_sd")
    words = pd.DataFrame(rows)
    table = _summary(words, config.seed)
    nouns = table[table["word"] == "shape"].set_index("metric")["value"]
    return Findings(
        summary={"method": config.method, "images": int(words["key"].nunique()), **nouns.to_dict()},
        tables={"words": words, "maps": table},
        figures=(
            Listing(
                "cross-attention maps", "agreement of a word's map with its object, and with the image's other objects",
                ("word", "metric", "value", "low", "high"), table.iloc[:, :5].to_numpy().tolist(),
            ),
            Gallery("cross-attention maps of object words", "brighter: more attention from there to the word", gallery),
        ),
        images=pictures,
    )  # fmt: skip


@torch.no_grad()
def attention_maps(
    model: Any, samples: Sequence[Sample], steps: int, guidance: float
) -> tuple[list[Image.Image], Tensor]:
    """Images of the captions, and Float[B, S, rows, columns] on the grid of the latents: a map for every token."""
    seeds = [zlib.crc32(sample.key.encode()) for sample in samples]
    with noting_attention(model, len(samples)) as sums:
        images = model.generate_images([sample.caption for sample in samples], seeds, steps, guidance)
    return images, sums.maps(model.image_grid({})[0])


def _judge(
    model: MultimodalModel, sample: Sample, parsed: ParsedScene, map_SYX: Tensor, threshold: float
) -> tuple[list[dict[str, object]], list[tuple[str, np.ndarray]]]:
    """One row for each attribute word of each object's first phrase, and the maps of the object words."""
    seen = [vars(thing) | {"visible": True} for thing in parsed.objects]
    mask_YX = render(scenes_of([seen], [0]))[1][0]
    names = [(thing["color"], thing["shape"]) for thing in seen]
    rows: list[dict[str, object]] = []
    shown = []
    for word in words_of(sample.caption, sample.objects):
        if word.role not in ATTRIBUTES:
            continue
        thing = sample.objects[word.thing]
        tokens = token_span(model.tokenizer, sample.caption, word)
        heat_YX = _to_pixels(map_SYX[tokens].mean(dim=0))
        agreement = [
            _agreement(heat_YX, mask_YX == index + 1, other["cell"], threshold) for index, other in enumerate(seen)
        ]
        own = agreement.pop(names.index((thing["color"], thing["shape"])))
        rows.append({
            "key": sample.key, "word": word.role, "text": sample.caption[word.start : word.stop], **own,
            **{f"{name}_other": np.mean([each[name] for each in agreement] or [np.nan]) for name in own},
        })  # fmt: skip
        if word.role == "shape":
            shown.append((f"{thing['color']} {thing['shape']}", heat_YX))
    return rows, shown


def _agreement(heat_YX: np.ndarray, mask_YX: np.ndarray, cell: int, threshold: float) -> dict[str, float]:
    inside_YX = heat_YX >= threshold * heat_YX.max()
    row, column = np.unravel_index(heat_YX.argmax(), heat_YX.shape)
    return {
        "iou": float((inside_YX & mask_YX).sum() / (inside_YX | mask_YX).sum()),
        "pointing": float(row // CELL * GRID + column // CELL == cell),
    }


def _to_pixels(map_YX: Tensor) -> np.ndarray:
    return F.interpolate(map_YX[None, None], size=(CANVAS, CANVAS), mode="bicubic").clamp_min(0)[0, 0].numpy()


def _overlay(image: Image.Image, heat_YX: np.ndarray) -> Image.Image:
    """The image, darker where the map is low."""
    light_YX = 0.15 + 0.85 * heat_YX / max(float(heat_YX.max()), 1e-12)
    pixels = np.asarray(image.convert("RGB").resize((CANVAS, CANVAS)), dtype=float) * light_YX[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


def _summary(words: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean over images of each metric and its chance, word by word."""
    rows = []
    for role, some in words.groupby("word", sort=False):
        by_image = some.groupby("key")[["iou", "iou_other", "pointing", "pointing_other"]].mean()
        for metric, values in by_image.items():
            interval = bootstrap_mean(values.dropna().to_numpy(), seed=seed)
            rows.append({"word": role, "metric": metric, **interval.as_dict()})
    return pd.DataFrame(rows)
