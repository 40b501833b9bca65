"""Codes of image–text pairs, worked by hand."""

from __future__ import annotations

import pytest
import torch

from cmma.evaluation.retrieval import retrieve
from cmma.features import pairing
from cmma.features.pairing import (
    bridge_diagonal,
    code_cosine,
    concept_jaccard,
    matching_latents,
    modality_score,
    normalised_error,
    retrievable,
    squared_errors,
    strangers,
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


def test_errors_of_records_add_up_to_the_normalised_error():
    target, guess = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    error_N, spread_N = squared_errors(guess, target)
    assert error_N[7] == pytest.approx(float((guess[7] - target[7]).double().square().sum()))
    assert float(error_N.sum() / spread_N.sum()) == normalised_error(guess, target)


def test_no_stranger_is_the_partner():
    for n in (2, 3, 50):
        partner_N = strangers(n, seed=n)
        assert sorted(partner_N.tolist()) == list(range(n))
        assert (partner_N != torch.arange(n)).all()


def test_the_bridge_does_not_depend_on_how_many_rows_are_done_at_once(monkeypatch):
    visual, textual, directions, other = torch.rand(4, 9, 9, generator=torch.Generator().manual_seed(0))
    whole = bridge_diagonal(visual, textual, directions, other)
    monkeypatch.setattr(pairing, "_ROWS_AT_ONCE", 4)
    assert bridge_diagonal(visual, textual, directions, other) == pytest.approx(whole)


def test_a_silent_code_retrieves_nothing_and_is_in_nobodys_way():
    codes = torch.eye(4)[[0, 1, 2, 2]]
    codes[3] = 0
    found = retrieve(retrievable(codes, 0), retrievable(codes, 1), block=4)
    assert found.image_to_text_N.tolist() == [0, 0, 0, 3]  # all four cosines of the silent one are equal: the last


def test_permuted_and_rescaled_latents_are_found_again():
    directions = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert matching_latents(directions[order], 2.5 * directions).tolist() == order.tolist()
