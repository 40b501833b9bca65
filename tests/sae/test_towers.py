"""Architectures with features of their own for each modality, and those that train on pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor
from torch.nn import functional as F

from cmma.errors import ConfigError, DataError
from cmma.hooks import Where
from cmma.modality import Modality
from cmma.sae.architectures.registry import build_sae
from cmma.sae.architectures.towers import TowerStandardiser
from cmma.sae.config import OptimConfig, preset
from cmma.sae.pairs import find_pairs
from cmma.sae.records import RecordBatch, TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train

D, K, TOP, P = 6, 24, 4, 15
PAIR_VIEWS = (6, 5)


def standardiser(blocks=(D,)) -> Standardiser:
    g = torch.Generator().manual_seed(3)
    mean_MD, scale_MD = torch.randn(3, sum(blocks), generator=g), torch.full((3, sum(blocks)), 1.5)
    if len(blocks) == 2:  # a joint view is the sum of its single views
        present_MD = Standardiser.identity(blocks).scale_MD
        mean_MD, scale_MD = mean_MD[:1] * present_MD, scale_MD * present_MD
    return Standardiser(mean_MD, scale_MD, blocks)


def dictionary(arch: str, blocks=(D,), **config):
    sae = build_sae(preset(arch, n_latents=K, **{"k": TOP, **config}), sum(blocks), standardiser(blocks), seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name.startswith("b_"):
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
            elif name == "W_dec" and sae.shares_encoder:
                parameter.copy_(F.normalize(torch.randn(K, 2, D, generator=g), dim=2).flatten(1))
    return sae


def paired(n: int = P, width: int = D) -> RecordBatch:
    """n visual records, then their n textual partners in another order."""
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(n, generator=g)
    return RecordBatch(
        torch.randn(2 * n, width, generator=g) * 2, torch.arange(2).repeat_interleave(n).to(torch.int8),
        torch.cat([torch.arange(n), order]), torch.zeros(2 * n, dtype=torch.int64))


def prepared(sae, records: RecordBatch) -> tuple[Tensor, RecordBatch]:
    return sae.standardiser.standardise(records.acts_BD, records.modality_B), records


def test_pairs_are_matched_one_to_one_within_a_sample():
    sample_B = torch.tensor([7, 3, 3, 7, 3, 9, 3, 8])
    modality_B = torch.tensor([0, 0, 1, 1, 0, 0, 2, 1])
    pairs = find_pairs(sample_B, modality_B)
    assert {(int(v), int(t)) for v, t in zip(*pairs, strict=True)} == {(0, 3), (1, 2)}
    assert len(find_pairs(sample_B, torch.zeros(8))) == 0


def test_every_record_of_equal_counts_is_paired():
    g = torch.Generator().manual_seed(0)
    sample_B = torch.arange(10).repeat_interleave(6)[torch.randperm(60, generator=g)]
    modality_B = torch.zeros(60, dtype=torch.int8)
    for sample in range(10):
        modality_B[(sample_B == sample).nonzero()[:3, 0]] = 1
    pairs = find_pairs(sample_B, modality_B)
    assert len(pairs) == 30
    assert torch.equal(sample_B[pairs.visual_P], sample_B[pairs.textual_P])
    assert len({*pairs.visual_P.tolist()}) == len({*pairs.textual_P.tolist()}) == 30
    assert modality_B[pairs.visual_P].eq(0).all()
    assert modality_B[pairs.textual_P].eq(1).all()


def test_towers_standardise_and_restore():
    plain = standardiser()
    towers = TowerStandardiser(plain.mean_MD, plain.scale_MD, plain.blocks)
    acts_BD, modality_B = torch.randn(8, D), torch.arange(8) % 2
    h_BW, h_BD = towers.standardise(acts_BD, modality_B), plain.standardise(acts_BD, modality_B)
    torch.testing.assert_close(h_BW[modality_B == 0], F.pad(h_BD[modality_B == 0], (0, D)))
    torch.testing.assert_close(h_BW[modality_B == 1], F.pad(h_BD[modality_B == 1], (D, 0)))
    torch.testing.assert_close(towers.restore(h_BW, modality_B), acts_BD)
    unknown_BD = towers.restore(2 * towers.standardise(acts_BD))  # half of each; both halves are the record
    torch.testing.assert_close(unknown_BD, acts_BD)


@pytest.mark.parametrize("arch", ["msae_decoders", "vl_sae", "sparc", "separate_matched"])
def test_each_modality_is_decoded_by_its_own_features(arch):
    sae = dictionary(arch)
    latents_BK = torch.rand(6, K)
    for modality, half in ((Modality.VISUAL, slice(0, D)), (Modality.TEXTUAL, slice(D, 2 * D))):
        code_B = torch.full((6,), int(modality))
        expected_BD = (latents_BK @ sae.W_dec[:, half] + sae.b_pre[half]) * 1.5 + sae.standardiser.mean_MD[modality]
        torch.testing.assert_close(sae.decode(latents_BK, code_B), expected_BD)
        torch.testing.assert_close(sae.directions(modality), sae.W_dec.detach()[:, half] * 1.5)
        if arch != "vl_sae":
            torch.testing.assert_close(sae.W_dec[:, half].norm(dim=1), torch.ones(K))


def test_msae_with_two_decoders_encodes_both_modalities_alike():
    sae, records = dictionary("msae_decoders"), paired()
    h_BD = standardiser().standardise(records.acts_BD, records.modality_B)
    expected_BK = (h_BD @ sae.W_enc.T + sae.b_enc).relu()
    torch.testing.assert_close(sae.encode(records.acts_BD, records.modality_B), expected_BK)


def test_separate_encoders_read_their_modality():
    sae, records = dictionary("sparc", k=K), paired()
    h_BD = standardiser().standardise(records.acts_BD, records.modality_B)
    visual_BK, textual_BK = h_BD @ sae.W_enc[:, :D].T + sae.b_enc, h_BD @ sae.W_enc[:, D:].T + sae.b_enc_textual
    expected_BK = torch.where(records.modality_B[:, None] == 0, visual_BK, textual_BK).relu()
    torch.testing.assert_close(sae.encode(records.acts_BD, records.modality_B), expected_BK)


def test_vl_sae_measures_distances_of_directions():
    sae, records = dictionary("vl_sae", k=K), paired()
    h_BD = standardiser().standardise(records.acts_BD, records.modality_B)
    expected_BK = 2 - torch.cdist(F.normalize(h_BD, dim=1), F.normalize(sae.W_enc, dim=1))
    torch.testing.assert_close(sae.encode(records.acts_BD, records.modality_B), expected_BK, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["msae_decoders", "vl_sae"])
def test_pair_views_have_no_common_encoder(arch):
    with pytest.raises(ConfigError, match=f"sae.arch={arch} reads both modalities with one encoder"):
        dictionary(arch, PAIR_VIEWS)


def test_a_record_is_not_blamed_for_the_other_half():
    sae = dictionary("sparc", PAIR_VIEWS)
    acts_BD = torch.randn(4, 11)
    acts_BD[:2, 6:], acts_BD[2:3, :6] = 0, 0  # two visual, a textual, a joint view
    records = RecordBatch(acts_BD, torch.tensor([0, 0, 1, 2], dtype=torch.int8), torch.arange(4), torch.zeros(4))
    done = sae.training_pass(*_with_none(prepared(sae, records)))
    assert done.reconstruction_BD[:2, 6:].eq(0).all()
    assert done.reconstruction_BD[2, :6].eq(0).all()
    assert done.reconstruction_BD[3].ne(0).all()


def _with_none(found: tuple[Tensor, RecordBatch]):
    return found[0], None, found[1]


@pytest.mark.parametrize("blocks", [(D,), PAIR_VIEWS])
def test_sparc_shares_the_mask_of_a_pair(blocks):
    sae = dictionary("sparc", blocks, lambda_cross=0.5)
    records = paired(width=sum(blocks))
    if len(blocks) == 2:
        records.acts_BD[:P, 6:], records.acts_BD[P:, :6] = 0, 0
    h_BW, _ = prepared(sae, records)
    pairs = find_pairs(records.sample_B, records.modality_B)
    done = sae.training_pass(h_BW, None, records)
    latents_BK = done.latents.dense()
    split = D
    visual_PK = h_BW[pairs.visual_P, :split] @ sae.W_enc[:, :split].T + sae.b_enc
    textual_PK = h_BW[pairs.textual_P, split:] @ sae.W_enc[:, split:].T + sae.b_enc_textual
    sum_PK = visual_PK + textual_PK
    kept_PK = sum_PK >= sum_PK.sort(dim=1).values[:, -TOP, None]
    torch.testing.assert_close(latents_BK[pairs.visual_P], visual_PK.relu() * kept_PK)
    torch.testing.assert_close(latents_BK[pairs.textual_P], textual_PK.relu() * kept_PK)
    into_visual_PD = latents_BK[pairs.textual_P] @ sae.W_dec[:, :split] + sae.b_pre[:split]
    into_textual_PD = latents_BK[pairs.visual_P] @ sae.W_dec[:, split:] + sae.b_pre[split:]
    crossed = (h_BW[pairs.visual_P, :split] - into_visual_PD).square().sum() + (
        h_BW[pairs.textual_P, split:] - into_textual_PD).square().sum()
    torch.testing.assert_close(done.terms["cross_reconstruction"], 0.5 * crossed)
    both = sae.encode_pairs(records.acts_BD[pairs.visual_P], records.acts_BD[pairs.textual_P])
    torch.testing.assert_close(both[0], latents_BK[pairs.visual_P])
    torch.testing.assert_close(both[1], latents_BK[pairs.textual_P])


def test_a_joint_view_has_the_joint_mask_of_sparc():
    """The pre-activation of [h_v ; h_t] is the sum of both: what Global TopK sorts by."""
    sae = dictionary("sparc", PAIR_VIEWS)
    acts_ND = torch.randn(5, 11)
    visual_ND, textual_ND = acts_ND.clone(), acts_ND.clone()
    visual_ND[:, 6:], textual_ND[:, :6] = 0, 0
    visual_NK, textual_NK = sae.encode_pairs(visual_ND, textual_ND)
    joint_NK = sae.encode(acts_ND, torch.full((5,), int(Modality.JOINT)))
    in_mask_NK = joint_NK > 0
    torch.testing.assert_close((visual_NK + textual_NK)[in_mask_NK].sign(), torch.ones(int(in_mask_NK.sum())))
    assert (((visual_NK > 0) | (textual_NK > 0)).sum(1) <= TOP).all()


def test_group_norm_and_shared_mask():
    records = paired()
    sae = build_sae(preset("group_sparse", n_latents=K, k=TOP, mask=0.5, lambda_group=0.3), D, standardiser(), seed=1)
    h_BD = sae.standardiser.standardise(records.acts_BD, records.modality_B)
    done = sae.training_pass(h_BD, None, records)
    pairs = find_pairs(records.sample_B, records.modality_B)
    latents_BK = done.latents.dense()
    visual_PK, textual_PK = latents_BK[pairs.visual_P], latents_BK[pairs.textual_P]
    expected = torch.stack([visual_PK, textual_PK]).norm(dim=0).sum()
    torch.testing.assert_close(done.terms["group"], 0.3 * expected)
    again = sae.training_pass(h_BD, None, records)
    assert torch.equal(again.latents.dense(), latents_BK)  # the mask is a function of the batch
    done.terms["group"].backward()
    assert sae.W_enc.grad.isfinite().all()


def test_one_shared_latent_is_cheaper_than_two():
    """√(1² + 1²) < √1² + √1²: what the group norm is for."""
    sae = build_sae(preset("group_sparse", n_latents=D, k=1, mask=0.0, lambda_group=1.0), D,
                    Standardiser.identity((D,)))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
    records = RecordBatch(torch.eye(D)[[0, 0]], torch.tensor([0, 1], dtype=torch.int8), torch.zeros(2), torch.zeros(2))
    same = sae.training_pass(records.acts_BD, None, records).terms["group"].item()
    apart = RecordBatch(torch.eye(D)[[0, 1]], records.modality_B, records.sample_B, records.position_B)
    other = sae.training_pass(apart.acts_BD, None, apart).terms["group"].item()
    assert (same, other) == (pytest.approx(2**0.5), pytest.approx(2))


def reader_of_pairs(n: int = 300, seed: int = 0) -> tuple[TensorReader, Tensor, Tensor]:
    """Concepts with one direction in images and another in texts; a pair has the same concepts."""
    g = torch.Generator().manual_seed(seed)
    visual_AD, textual_AD = (F.normalize(torch.randn(8, D * 2, generator=g), dim=1) for _ in range(2))
    strength_NA = (torch.rand(n, 8, generator=g) < 0.15) * (torch.rand(n, 8, generator=g) + 0.5)
    acts_ND = torch.stack([strength_NA @ visual_AD, strength_NA @ textual_AD], 1).flatten(0, 1)
    modality_N = torch.arange(2).repeat(n)
    return TensorReader(acts_ND, modality_N, torch.arange(n).repeat_interleave(2)), visual_AD, textual_AD


def test_matching_correlates_as_scipy_does():
    reader, *_ = reader_of_pairs()
    sae = build_sae(preset("separate_matched", n_latents=K, k=TOP), 2 * D, Standardiser.fit(reader), seed=1)
    correlation_KK = sae.correlations(reader, reader.n_records, seed=0)
    batch = next(iter(reader.batches(reader.n_records, 0, together=True)))
    latents_BK = sae.encode(batch.acts_BD, batch.modality_B).detach().double().numpy()
    visual_PK, textual_PK = latents_BK[0::2], latents_BK[1::2]
    for i, j in ((0, 0), (3, 7), (11, 2)):
        if min(np.ptp(visual_PK[:, i]), np.ptp(textual_PK[:, j])) > 0:
            expected = pearsonr(visual_PK[:, i], textual_PK[:, j])[0]
            assert float(correlation_KK[i, j]) == pytest.approx(expected, abs=1e-6)
    silent_K = torch.from_numpy((visual_PK == 0).all(0))
    assert (correlation_KK[silent_K] == -1e9).all()


def test_matching_finds_a_permutation(tmp_path):
    """Both dictionaries know the concepts; the textual one in another order."""
    reader, visual_AD, textual_AD = reader_of_pairs()
    sae = build_sae(preset("separate_matched", n_latents=8, k=3), 2 * D, Standardiser.fit(reader), seed=1)
    order_A = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([visual_AD, textual_AD[order_A]], dim=1))
        sae.W_dec.copy_(sae.W_enc)
    sae.conclude(reader, 128, seed=0)
    matched_A = (F.normalize(sae.W_dec[:, 2 * D :], dim=1) @ textual_AD.T).argmax(1)
    assert (matched_A == torch.arange(8)).float().mean() >= 0.75  # two concepts per record blur the correlations


def test_a_matched_dictionary_is_matched_once(tmp_path):
    """A finished run that is started again must not permute again."""
    reader, *_ = reader_of_pairs()
    config = OptimConfig(batch=64, steps=5)

    def run():
        sae = build_sae(preset("separate_matched", n_latents=K, k=TOP), 2 * D, Standardiser.fit(reader), seed=1)
        train(sae, reader, config, tmp_path)
        return sae.state_dict()

    first, second = run(), run()
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_matching_needs_pairs():
    reader = TensorReader(torch.randn(60, D), torch.arange(60) % 2)
    sae = build_sae(preset("separate_matched", n_latents=K, k=TOP), D, Standardiser.fit(reader))
    with pytest.raises(DataError, match="same sample"):
        sae.conclude(reader, 20, 0)


@pytest.mark.parametrize("modality", [Modality.VISUAL, Modality.TEXTUAL])
def test_an_intervention_writes_the_features_of_the_tokens_modality(modality):
    sae, acts_ND = dictionary("msae_decoders"), paired().acts_BD
    code_N = torch.full((len(acts_ND),), int(modality), dtype=torch.int8)
    where = Where(torch.arange(len(acts_ND)), torch.zeros(len(acts_ND), dtype=torch.int64), 0)
    edited_ND = sae.edit(ablate=[3]).fn(acts_ND, code_N, where)
    removed_N1 = sae.encode(acts_ND, code_N)[:, 3:4]
    assert removed_N1.max() > 0
    torch.testing.assert_close(edited_ND, acts_ND - removed_N1 * sae.directions(modality)[3])
