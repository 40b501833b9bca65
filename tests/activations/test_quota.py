"""The quota: bounded, per modality, and blind to everything but (seed, sample)."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmma.activations.quota import choose_records
from cmma.modality import Modality


@given(st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=12, max_size=12), min_size=1, max_size=4),
       st.integers(1, 6), st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_each_modality_gets_its_quota_or_all_it_has(rows, visual, textual, seed):
    modality_BS = torch.tensor(rows, dtype=torch.int8)
    kept_BS = choose_records(modality_BS, range(len(rows)), visual, textual, joint=True, seed=seed)
    for code, quota in ((Modality.VISUAL, visual), (Modality.TEXTUAL, textual)):
        there_B = (modality_BS == code).sum(1)
        assert torch.equal((kept_BS & (modality_BS == code)).sum(1), there_B.clamp(max=quota))
    assert not (kept_BS & (modality_BS == Modality.DROPPED)).any()


def test_the_choice_ignores_padding_and_the_rest_of_the_batch():
    tokens = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]], dtype=torch.int8)
    alone = choose_records(tokens, [17], 2, 3, True, seed=3)
    padded = torch.cat([torch.nn.functional.pad(tokens, (0, 4), value=-1), torch.zeros(1, 13, dtype=torch.int8)])
    assert torch.equal(choose_records(padded, [17, 4], 2, 3, True, seed=3)[0, :9], alone[0])


def test_every_token_is_chosen_equally_often():
    tokens = torch.zeros(4000, 8, dtype=torch.int8)
    share_S = choose_records(tokens, range(4000), 2, 1, True, seed=0).double().mean(0)
    assert (share_S - 2 / 8).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_joint_views_are_kept_or_dropped_by_choice():
    tokens = torch.tensor([[0, 1, 2]], dtype=torch.int8)
    assert choose_records(tokens, [0], 1, 1, True, 0).tolist() == [[True, True, True]]
    assert choose_records(tokens, [0], 1, 1, False, 0).tolist() == [[True, True, False]]
