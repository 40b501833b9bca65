"""Codes of image–text pairs, worked by hand."""

from __future__ import annotations

import pytest
import torch

from cmma.features.pairing import (
    bridge_diagonal,
    code_cosine,
    concept_jaccard,
    modality_score,
    normalised_error,
    support_jaccard,
)

VISUAL = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
TEXTUAL = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]])


def test_cosine_and_jaccard_of_pairs():
    assert code_cosine(VISUAL, TEXTUAL).tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert support_jaccard(VISUAL, TEXTUAL).tolist() == pytest.approx([1 / 3, 1.0, 0.0])


def test_modality_scores_run_from_text_to_image():
    assert modality_score(VISUAL, TEXTUAL).tolist() == pytest.approx([0.5, 0.75, 0.0, float("nan")], nan_ok=True)


def test_the_bridge_of_aligned_latents_is_diagonal():
    # Products summed over pairs: (0,0) 1, (0,2) 1, (1,0) 1, (1,1) 2, (1,2) 1.
    same = torch.ones(4, 5)
    assert bridge_diagonal(VISUAL, TEXTUAL, same, same) == pytest.approx(3 / 6)
    assert bridge_diagonal(VISUAL, TEXTUAL, torch.eye(4), torch.eye(4)) == 1.0


def test_concepts_of_a_latents_images_and_texts():
    labels = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])
    visual = torch.tensor([[2.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    textual = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    jaccard_K = concept_jaccard(visual, textual, labels, top=2)
    assert jaccard_K.tolist() == pytest.approx([1.0, float("nan"), 0.0], nan_ok=True)


def test_the_mean_has_error_one():
    target = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert normalised_error(target.mean(0).expand(50, 3), target) == pytest.approx(1)
    assert normalised_error(target, target) == 0
