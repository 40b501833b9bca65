"""Interventions (paper, Eq. 8-11): the latent arithmetic, and what it does to activations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmma.errors import ConfigError, DataError
from cmma.hooks import TokenEdit, Where
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.latent_edit import LatentSource, latent_edit
from cmma.sae.standardiser import Standardiser

LATENTS_NK = torch.tensor([[1.0, 2.0, 0.0, 4.0], [0.0, 3.0, 5.0, 1.0]])
BATCH_INDEX_N, POSITION_N = torch.tensor([0, 1]), torch.tensor([2, 5])


def changed(**changes) -> list[list[float]]:
    edit = latent_edit(4, **changes)
    new_NI = edit.apply(LATENTS_NK[:, edit.latents_I], BATCH_INDEX_N, POSITION_N)
    return LATENTS_NK.index_copy(1, edit.latents_I, new_NI).tolist()


def test_ablation_is_equation_8():
    assert changed(ablate=[1, 3]) == [[1, 0, 0, 0], [0, 0, 5, 0]]


def test_amplification_is_equation_9():
    assert changed(amplify={3: 1.5}) == [[1, 2, 0, 6], [0, 3, 5, 1.5]]


def test_substitution_is_equation_10():
    assert changed(substitute=LatentSource([2, 0], torch.tensor([9.0, 7.0]))) == [[7, 2, 9, 4], [7, 3, 9, 1]]


def test_combination_is_equation_11():
    source = LatentSource([1], torch.tensor([[10.0], [20.0]]))  # by sample
    assert changed(combine=(0.25, source)) == [[1, 0.25 * 2 + 0.75 * 10, 0, 4], [0, 0.25 * 3 + 0.75 * 20, 5, 1]]


def test_setting_and_mixing_kinds():
    assert changed(set={0: 8.0}, ablate=[3], amplify={1: 2.0}) == [[8, 4, 0, 0], [8, 6, 5, 0]]


def test_a_source_by_position_leaves_tokens_beyond_it_alone():
    values_BSI = torch.arange(6.0).view(2, 3, 1)  # three positions; the second token is at position 5
    assert changed(substitute=LatentSource([1], values_BSI)) == [[1, 2, 0, 4], [0, 3, 5, 1]]
    values_BSI = torch.full((2, 6, 1), 9.0)
    assert changed(substitute=LatentSource([1], values_BSI)) == [[1, 9, 0, 4], [0, 9, 5, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "at least one latent"), ({"ablate": [4]}, "latent 4 does not exist"), ({"ablate": [-1]}, "latent -1"),
        ({"ablate": [2], "set": {2: 1.0}}, "latent 2 is changed twice"),
        ({"combine": (1.5, LatentSource([0], torch.ones(1)))}, "β = 1.5"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        latent_edit(4, **changes)


def test_a_source_of_the_wrong_width_is_refused():
    with pytest.raises(ConfigError, match="2 latents"):
        LatentSource([0, 1], torch.ones(3))


def dictionary(arch: str = "msae", blocks: tuple[int, ...] = (6,)) -> SparseAutoencoder:
    d = sum(blocks)
    mean_MD, scale_MD = torch.randn(3, d), (torch.rand(3, 1) + 0.5).expand(3, d).clone()
    if len(blocks) == 2:
        for modality, half in ((0, slice(blocks[0], d)), (1, slice(0, blocks[0]))):
            mean_MD[modality, half] = scale_MD[modality, half] = 0
    config = preset(arch, n_latents=24, k=5, initial_l0=12.0)
    return build_sae(config, d, Standardiser(mean_MD, scale_MD, blocks)).requires_grad_(False)


def run(edit: TokenEdit, acts_ND: Tensor, modality_N: Tensor) -> Tensor:
    n = len(acts_ND)
    return edit.fn(acts_ND, modality_N, Where(torch.zeros(n, dtype=torch.long), torch.arange(n), 0))


@pytest.mark.parametrize("arch", ["msae", "topk"])
def test_the_reconstruction_error_passes_through(arch):  # h' = h + decode(a') − decode(a)
    sae, acts_ND, modality_N = dictionary(arch), torch.randn(8, 6) * 3, torch.arange(8) % 2
    latents_NK = sae.encode(acts_ND, modality_N)
    edited_NK = latents_NK.clone()
    edited_NK[:, 3], edited_NK[:, 7] = 0, edited_NK[:, 7] * 2
    expected_ND = acts_ND + sae.decode(edited_NK, modality_N) - sae.decode(latents_NK, modality_N)
    edit = sae.edit(ablate=[3], amplify={7: 2.0})
    torch.testing.assert_close(run(edit, acts_ND, modality_N), expected_ND, rtol=1e-4, atol=1e-5)
    dropped = sae.edit(ablate=[3], amplify={7: 2.0}, keep_error=False)
    torch.testing.assert_close(run(dropped, acts_ND, modality_N), sae.decode(edited_NK, modality_N))


def test_an_edit_that_changes_nothing_returns_the_activations_to_the_bit():
    sae, acts_ND, modality_N = dictionary(), torch.randn(8, 6), torch.arange(8) % 2
    assert torch.equal(run(sae.edit(amplify={2: 1.0}), acts_ND, modality_N), acts_ND)


def test_ablating_a_silent_latent_changes_nothing():
    sae, acts_ND, modality_N = dictionary("topk"), torch.randn(1, 6), torch.zeros(1)
    silent = int((sae.encode(acts_ND, modality_N)[0] == 0).nonzero()[0])
    assert torch.equal(run(sae.edit(ablate=[silent]), acts_ND, modality_N), acts_ND)


def test_one_tower_of_a_pair_is_edited_in_its_own_half():
    sae = dictionary(blocks=(4, 2))
    acts_NV, modality_N = torch.randn(5, 4), torch.full((5,), int(Modality.VISUAL))
    record_ND = torch.cat([acts_NV, torch.zeros(5, 2)], dim=1)
    edit = sae.edit(ablate=[0, 5, 9])
    whole_ND = run(edit, record_ND, modality_N)
    torch.testing.assert_close(run(edit, acts_NV, modality_N), whole_ND[:, :4])
    assert whole_ND[:, 4:].eq(0).all()  # the absent half stays absent
    with pytest.raises(DataError, match="width 4"):
        run(edit, acts_NV, torch.full((5,), int(Modality.TEXTUAL)))


def test_tokens_and_phase_are_passed_on():
    edit = dictionary().edit(ablate=[1], tokens="visual", phase="decode")
    assert (edit.tokens, edit.phase) == ("visual", "decode")


def test_half_precision_activations_are_edited_in_full_precision():
    sae, acts_ND, modality_N = dictionary(), torch.randn(8, 6).bfloat16(), torch.arange(8) % 2
    full_ND = run(sae.edit(ablate=[3]), acts_ND.float(), modality_N)
    torch.testing.assert_close(run(sae.edit(ablate=[3]), acts_ND, modality_N).float(), full_ND)
