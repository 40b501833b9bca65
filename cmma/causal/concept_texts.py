"""Texts that stand for concepts: the labels of a data set, embedded by a dual encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.evaluation.embeddings import embed
from cmma.models.base import MultimodalModel


def require_dual_encoder(model: MultimodalModel, method: str) -> None:
    """Raises ConfigError for a model without a space that images and texts share."""
    if model.kind != "dual_encoder":
        raise ConfigError(f"trace.method={method} reads the shared space of a dual encoder; take model=toy_clip")


def labels_of(samples: Sequence[Sample]) -> list[str]:
    """Every label, sorted. Raises DataError where there are none."""
    labels = sorted({label for sample in samples for label in sample.labels})
    if not labels:
        raise DataError("concepts are the labels of the samples, and these have none; set dataset.label_column")
    return labels


def embed_concepts(model: MultimodalModel, labels: Sequence[str], template: str, image: Sample) -> np.ndarray:
    """float64[C, E]: unit-norm text embeddings of the labels in a template ("a {}."); `image` is any sample."""
    texts = [template.format(label) for label in labels]
    text_CE = embed(model, [image] * len(texts), texts).text_ND.astype(np.float64)
    return text_CE / np.linalg.norm(text_CE, axis=1, keepdims=True)
