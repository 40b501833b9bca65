"""Semantic consistency of images and texts, and how an intervention changes it (paper, section 5.5.2).

The paper names three components of "CLIP-Score metrics" and defines none. Here, from the embeddings of a dual encoder:

* *visual-semantic alignment*: CLIPScore of each image with its text;
* *cross-modal coherence*: the same less the mean CLIPScore with the other samples' texts: what is the pair's own;
* *compositional understanding*: the lowest CLIPScore of the image with a part of its text (what stands between commas
  and full stops): every part has to be there.

`all` is the mean of the three changes, as the paper's headline is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from cmma.data.samples import Sample
from cmma.evaluation.clip_score import clip_score
from cmma.evaluation.embeddings import embed
from cmma.models.base import MultimodalModel
from cmma.statistics.bootstrap import Interval, bootstrap_statistic

COMPONENTS = ("visual-semantic alignment", "cross-modal coherence", "compositional understanding")


def consistency_scores(
    encoder: MultimodalModel, samples: Sequence[Sample], texts: Sequence[str], batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Component → float64[N], from each sample's image and its text. Coherence of one sample alone is NaN."""
    found = embed(encoder, samples, texts, batch_size)
    n = len(samples)
    score_NN = clip_score(np.repeat(found.image_ND, n, axis=0), np.tile(found.text_ND, (n, 1))).reshape(n, n)
    own_N = score_NN.diagonal()
    others_N = (score_NN.sum(axis=1) - own_N) / (n - 1) if n > 1 else np.full(n, np.nan)
    split = [text_parts(text) for text in texts]
    owners = [row for row, parts in enumerate(split) for _ in parts]
    parts = embed(encoder, [samples[row] for row in owners], [part for parts in split for part in parts], batch_size)
    lowest_N = np.full(n, np.inf)
    np.minimum.at(lowest_N, owners, clip_score(parts.image_ND, parts.text_ND))
    return dict(zip(COMPONENTS, (own_N, own_N - others_N, lowest_N), strict=True))


def text_parts(text: str) -> list[str]:
    """What stands between commas and full stops; the text itself where there is nothing."""
    return [part.strip() for part in re.split(r"[,.]", text) if part.strip()] or [text]


def relative_changes(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], n_resamples: int = 10_000, seed: int = 0
) -> dict[str, Interval]:
    """Change of each component's mean in percent of the mean before, and `all`, the mean of the three.

    Intervals resample samples, before and after together.
    """

    def change(*pairs: np.ndarray, axis: int = -1) -> np.ndarray:
        means = [values.mean(axis) for values in pairs]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.mean([100 * (new - old) / old for old, new in zip(means[::2], means[1::2], strict=True)], axis=0)

    columns: dict[str, tuple[np.ndarray, ...]] = {name: (before[name], after[name]) for name in COMPONENTS}
    columns["all"] = tuple(values for pair in columns.values() for values in pair)
    return {
        name: bootstrap_statistic(change, *values, n_resamples=n_resamples, seed=seed)
        for name, values in columns.items()
    }
