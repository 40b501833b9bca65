"""head_text: what a head of CLIP's image tower writes, in texts (TextSpan, Gandelsman et al. 2024, 2310.05916)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from cmma.causal.concept_texts import embed_concepts, labels_of, require_dual_encoder
from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.causal.heads import head_outputs
from cmma.console import progress
from cmma.data.samples import Sample
from cmma.figures import HeatMap, Listing
from cmma.models.base import MultimodalModel


class TextSpan(NamedTuple):
    """Texts of a head in the order in which they were taken, with the share of its variance explained so far."""

    texts: list[int]
    explained: list[float]


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """The texts of every head of the last layers; summary: the variance that they explain, beside random directions.

    Raises:
        ConfigError: the model is no dual encoder. DataError: the samples have no labels.
    """
    require_dual_encoder(model, config.method)
    options = config.head_text
    samples = list(samples[: config.max_samples])
    labels = labels_of(samples)
    depth = int(model.depths["vision"])  # type: ignore[attr-defined]
    layers = list(range(max(0, depth - options.n_layers), depth))
    heads_NLHE = head_outputs(model, samples, layers).heads_NLHE.double().numpy()
    concept_CE = embed_concepts(model, labels, options.template, samples[0])
    random_CE = np.random.default_rng(config.seed).normal(size=concept_CE.shape)
    n_heads = heads_NLHE.shape[2]
    rows = []
    with progress("Describing heads", total=len(layers) * n_heads) as bar:
        for column, layer in enumerate(layers):
            for head in range(n_heads):
                outputs_NE = heads_NLHE[:, column, head]
                found = text_span(outputs_NE, concept_CE, options.n_texts, options.rank)
                control = text_span(outputs_NE, random_CE, options.n_texts, options.rank)
                best = _principal(outputs_NE, options.n_texts)
                for place, (text, share) in enumerate(zip(*found, strict=True)):
                    rows.append({
                        "layer": layer, "head": head, "place": place, "text": labels[text], "explained": share,
                        "explained_by_random": control.explained[place], "explained_at_best": best[place],
                        "variance": float(outputs_NE.var(axis=0).sum()),
                    })  # fmt: skip
                bar.advance(1)
    table = pd.DataFrame(rows)
    last = table.groupby(["layer", "head"]).tail(1)
    return Findings(
        summary={
            "method": config.method, "images": len(samples), "texts": len(labels), "heads": len(last),
            **{name: float(last[name].mean()) for name in ("explained", "explained_by_random", "explained_at_best")},
        },
        tables={"texts": table},
        figures=(_listing(table), _variances(table, layers, n_heads, len(samples))),
        tensors={"heads_NLHE": torch.from_numpy(heads_NLHE).float()},
    )  # fmt: skip


def text_span(outputs_NE: np.ndarray, text_CE: np.ndarray, n_texts: int, rank: int = 80) -> TextSpan:
    """Greedily take the text along which a head's outputs vary most, and take that direction out of outputs and texts.

    Texts are first projected onto the span of the outputs' first `rank` singular directions. A text that was taken is
    zero afterwards, and is not taken twice; fewer texts come back where nothing is left.
    """
    outputs_NE = outputs_NE - outputs_NE.mean(axis=0)
    _, singular, direction_RE = np.linalg.svd(outputs_NE, full_matrices=False)
    kept = singular[:rank] > 1e-8 * singular[0]
    direction_RE = direction_RE[:rank][kept]
    text_CE = text_CE @ direction_RE.T @ direction_RE
    smallest = 1e-6 * np.linalg.norm(text_CE, axis=1).max()
    total, left_NE = float((outputs_NE**2).sum()), outputs_NE
    found = TextSpan([], [])
    for _ in range(min(n_texts, len(direction_RE), len(text_CE))):
        norm_C = np.linalg.norm(text_CE, axis=1)
        unit_CE = np.divide(text_CE, norm_C[:, None], out=np.zeros_like(text_CE), where=norm_C[:, None] > smallest)
        best = int((left_NE @ unit_CE.T).std(axis=0).argmax())
        along_E = unit_CE[best]
        left_NE = left_NE - np.outer(left_NE @ along_E, along_E)
        text_CE = text_CE - np.outer(text_CE @ along_E, along_E)
        found.texts.append(best)
        found.explained.append(1 - float((left_NE**2).sum()) / total)
    return found


def _principal(outputs_NE: np.ndarray, n: int) -> list[float]:
    """Share of the variance that the first directions explain, for each number of them: no texts can do better."""
    singular = np.linalg.svd(outputs_NE - outputs_NE.mean(axis=0), compute_uv=False)
    return (np.cumsum(singular**2) / (singular**2).sum())[:n].tolist()


def _listing(table: pd.DataFrame) -> Listing:
    heads = table.groupby(["layer", "head"], sort=False)
    return Listing(
        "texts of heads (TextSpan)", "the first five, and the variance that all explain beside random directions",
        ("layer", "head", "texts", "explained", "by random directions"),
        [
            (int(layer), int(head), ", ".join(some["text"].head(5)), float(some["explained"].iloc[-1]),
             float(some["explained_by_random"].iloc[-1]))
            for (layer, head), some in heads
        ],
    )  # fmt: skip


def _variances(table: pd.DataFrame, layers: Sequence[int], n_heads: int, n: int) -> HeatMap:
    grid = table.drop_duplicates(["layer", "head"]).pivot(index="layer", columns="head", values="variance")
    return HeatMap(
        title="what heads add to the image embedding", about="variance over images", value_RC=grid.to_numpy(float),
        rows=[str(layer) for layer in layers], columns=[str(head) for head in range(n_heads)], n=n,
    )  # fmt: skip
