"""CLIPScore by hand, and against torchmetrics at its own definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score

from cmma.evaluation.clip_score import clip_score, hundred_cosines, ref_clip_score


def test_definition_by_hand():
    image = np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    caption = np.array([[4.0, 3.0], [0.0, 7.0], [-1.0, 1.0]])
    assert clip_score(image, caption) == pytest.approx([2.5 * 24 / 25, 0, 0])  # a negative cosine counts as 0


def test_reference_score_is_the_harmonic_mean_with_the_best_reference():
    image, caption = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]])
    references = np.array([[[0.8, 0.6], [0.0, 1.0], [np.nan, np.nan]]])  # cosines 0.96 and 0.8; one padding row
    clip_s = 2.5 * 0.6
    assert ref_clip_score(image, caption, references) == pytest.approx([2 * clip_s * 0.96 / (clip_s + 0.96)])
    assert ref_clip_score(image, -image, references) == pytest.approx([0])


class FixedEncoder:
    """Stands for a CLIP in torchmetrics: the embeddings are given, its arithmetic is what is compared."""

    config = None

    def __init__(self, image_ND: np.ndarray, text_ND: np.ndarray) -> None:
        self.image_ND, self.text_ND = torch.tensor(image_ND), torch.tensor(text_ND)

    def to(self, device: torch.device) -> FixedEncoder:
        return self

    def __call__(self, text: list[str] | None = None, images: list | None = None, **_: object) -> dict:
        return {"pixel_values": torch.zeros(1), "input_ids": torch.zeros(1), "attention_mask": torch.zeros(1, 1)}

    def get_image_features(self, _: torch.Tensor) -> torch.Tensor:
        return self.image_ND

    def get_text_features(self, *_: torch.Tensor) -> torch.Tensor:
        return self.text_ND


@pytest.mark.parametrize("sign", [1, -1])
def test_torchmetrics_is_the_mean_of_hundred_cosines_clipped(sign: int):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 16))
    text = sign * image + rng.normal(size=(20, 16))
    encoder = FixedEncoder(image, text)
    images = [torch.zeros(3, 4, 4)] * 20
    theirs = torchmetrics_clip_score(images, ["x"] * 20, model_name_or_path=lambda: (encoder, encoder)).item()
    assert theirs == pytest.approx(max(hundred_cosines(image, text).mean(), 0), abs=1e-9)
    if sign == 1:
        assert abs(theirs - clip_score(image, text).mean()) > 1  # the two never compare
