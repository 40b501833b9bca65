"""The one form in which image, text and truth travel through cmma."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Question:
    """A question about one image with its short answer; `kind` groups questions in reports."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Sample:
    """One image with its caption and what is known about it.

    Attributes:
        key: unique within its data set; the member name in the webdataset tar.
        image: RGB.
        caption: one caption; may be empty.
        meta: JSON-serialisable truth (`docs/artifacts.md`): split, objects, relations, labels, questions, pair, source.
        mask: uint8 [height, width], 0 = background, i + 1 = the object `meta["objects"][i]`; None where unknown.
    """

    key: str
    image: Image.Image
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)
    mask: np.ndarray | None = None

    @property
    def labels(self) -> list[str]:
        """Categories of the sample: the labels y of the paper's Eq. 6."""
        return list(self.meta.get("labels", []))

    @property
    def questions(self) -> list[Question]:
        """Questions that come with the sample, possibly none."""
        return [Question(**entry) for entry in self.meta.get("questions", [])]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Known objects of the scene, possibly none."""
        return list(self.meta.get("objects", []))
