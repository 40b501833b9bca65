"""The patching engine: identities of causal mediation, and an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal import patching
from cmma.causal.config import NoiseConfig, TraceConfig
from cmma.causal.corruptions import contrast_runs, embedding_std, noise_runs, single_run
from cmma.causal.modules import window
from cmma.causal.passes import why_whole
from cmma.causal.patching import Part, Run, activation_patch, run_scores
from cmma.causal.queries import Query, caption_queries, image_pair_contrasts, question_queries
from cmma.causal.readout import AnswerReadout, CosineReadout
from cmma.causal.tracing import trace
from cmma.errors import ConfigError, DataError
from cmma.hooks import Edit, Trace

RESIDUALS = [f"language.layers.{layer}.resid_post" for layer in range(4)]


@pytest.fixture(scope="module")
def cases(tiny, pairs):
    return [contrast_runs(tiny, contrast) for contrast in image_pair_contrasts(pairs)[:2]]


def patch(model, cases, sites, positions, readout, **options):
    clean, corrupt = zip(*cases, strict=True)
    return activation_patch(model, clean, corrupt, sites, [positions(run) for run in clean], readout, **options)


def everything(run):
    return {"everything": torch.arange(run.batch["input_ids"].shape[1]), "nothing": torch.empty(0, dtype=torch.long)}


@pytest.mark.parametrize("module", ["resid_post", "attn_out", "mlp_out"])
def test_restoring_every_position_is_the_clean_run_and_nothing_the_corrupt_run(tiny, cases, module):
    """All information passes through the residual stream of a layer; a module's output alone does not carry it all."""
    sites = [f"language.layers.{layer}.{module}" for layer in range(4)]
    result = patch(tiny, cases, sites, everything, AnswerReadout(tiny, "log_probability"))
    np.testing.assert_allclose(result.score_CRG[:, :, 1], result.low_C[:, None].repeat(4, 1), atol=1e-5)
    assert (np.abs(result.high_C - result.low_C) > 1e-3).all()
    restored = np.abs(result.score_CRG[:, :, 0] - result.high_C[:, None])
    assert restored.max() < 1e-5 if module == "resid_post" else restored.min() > 1e-5


def test_windows_of_modules_are_restored_together(tiny, cases):
    """The stream is the embedding plus what every module adds (Elhage et al. 2021).

    The pair differs in the image only, so at the text positions all modules together bring the clean run back.
    """
    modules = [f"language.layers.{layer}.{module}" for layer in range(4) for module in ("attn_out", "mlp_out")]
    rows = {"embedding": ["language.embed"], "all modules": modules, "later modules": modules[2:]}
    result = patch(tiny, cases, rows, everything, AnswerReadout(tiny, "log_probability"))
    distance_CR = np.abs(result.score_CRG[:, :, 0] - result.high_C[:, None])
    assert distance_CR[:, :2].max() < 1e-5
    assert distance_CR[:, 2].min() > 1e-5


def test_the_last_position_alone_decides_after_the_last_layer(tiny, cases):
    """Only the last prompt token's final state is read out (for an answer of one token)."""
    one_token = AnswerReadout(tiny, "logit_difference")

    def last_or_rest(run):
        end = int(run.batch.prompt_end[0])
        return {"last": torch.tensor([end]), "rest": torch.arange(end)}

    result = patch(tiny, cases, RESIDUALS[-1:], last_or_rest, one_token)
    np.testing.assert_allclose(result.score_CRG[:, 0, 0], result.high_C, atol=1e-5)
    np.testing.assert_allclose(result.score_CRG[:, 0, 1], result.low_C, atol=1e-5)


@pytest.mark.parametrize("rows_per_forward", [1, 3, 64])
def test_cells_do_not_depend_on_which_cells_share_a_forward_pass(tiny, cases, rows_per_forward, monkeypatch):
    """Against one whole forward pass per cell."""

    def each(run):
        return {str(position): torch.tensor([position]) for position in range(2, 40, 6)}

    readout = AnswerReadout(tiny, "log_probability")
    result = patch(tiny, cases, RESIDUALS, each, readout, rows_per_forward=rows_per_forward)
    monkeypatch.setattr(patching, "why_whole", lambda *_: "asked for")
    alone = patch(tiny, cases, RESIDUALS, each, readout, rows_per_forward=1)
    np.testing.assert_allclose(result.score_CRG, alone.score_CRG, atol=1e-5)


def test_a_dual_encoder_resumes_above_the_noise_and_skips_the_other_tower(tiny_clip, pairs, monkeypatch):
    """Against whole passes through both towers; a row beneath the noise cannot be resumed."""
    clean = [single_run(tiny_clip, query) for query in caption_queries(pairs[:2])]
    cases = [(run, corrupt) for run in clean for corrupt in noise_runs(tiny_clip, run, NoiseConfig(draws=1), 1.0, 0)]
    names = [name for name in tiny_clip.site_names() if name.endswith("resid_post")]
    sites = [name for name in names if name.startswith("vision")]

    def some(run):
        return {"first": torch.tensor([0]), "second": torch.tensor([1, 2])}

    assert not why_whole(tiny_clip, {site: (Part(site),) for site in sites}, [corrupt for _, corrupt in cases])
    late = Run(clean[0].query, clean[0].batch, (("vision.layers.2.mlp_out", cases[0][1].edits[0][1]),))
    assert "vision.layers.2.mlp_out" in why_whole(tiny_clip, {sites[1]: (Part(sites[1]),)}, [late])
    result = patch(tiny_clip, cases, sites, some, CosineReadout(tiny_clip))
    monkeypatch.setattr(patching, "why_whole", lambda *_: "asked for")
    whole = patch(tiny_clip, cases, sites, some, CosineReadout(tiny_clip))
    np.testing.assert_allclose(result.score_CRG, whole.score_CRG, atol=1e-5)
    assert result.score_CRG.std() > 1e-4


@torch.no_grad()
def test_patched_scores_equal_nnsight(tiny, tiny_llava, cases):
    """nnsight is an independent implementation of activation patching."""
    nnsight = pytest.importorskip("nnsight")
    clean, corrupt = cases[0]
    wrapped = nnsight.NNsight(tiny_llava().module)  # it leaves its own wrappers on a module
    end, positions = int(clean.batch.prompt_end[0]), [4, 5, 17]
    answer, other = (tiny.answer_ids(text)[0] for text in (clean.query.answer, clean.query.other))

    result = patch(
        tiny, cases[:1], RESIDUALS, lambda _: {"some": torch.tensor(positions)}, AnswerReadout(tiny, "logit_difference")
    )
    for layer in range(4):
        block = wrapped.model.language_model.layers[layer]
        with wrapped.trace(**clean.batch):
            kept = block.output.save()
        with wrapped.trace(**corrupt.batch):
            patched = block.output.clone()
            patched[:, positions] = kept[:, positions]
            block.output = patched
            logits = wrapped.output.logits.save()
        expected = float(logits[0, end, answer] - logits[0, end, other])
        assert result.score_CRG[0, layer, 0] == pytest.approx(expected, abs=1e-5)


# --- corruption -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tiny, pairs):
    return single_run(tiny, question_queries(pairs[:1], per_sample=1)[0])


@torch.no_grad()
def traced_under(model, run, rows=1):
    with Edit(model, *run.edits[0]), Trace(model, ["projector.out"]) as acts:
        model(**run.batch.rows([0] * rows))
    return acts["projector.out"]


@torch.no_grad()
def test_noise_is_the_same_in_every_cell_and_differs_between_draws(tiny, asked):
    config = NoiseConfig(draws=2)
    first, second = noise_runs(tiny, asked, config, std=1.0, seed=0)
    copies = traced_under(tiny, first, rows=3)
    assert torch.equal(copies[0], copies[1])
    assert torch.equal(copies[0], copies[2])
    again = noise_runs(tiny, asked, config, std=1.0, seed=0)[0]
    assert torch.equal(copies[:1], traced_under(tiny, again))
    assert not torch.allclose(copies[:1], traced_under(tiny, second))
    assert not torch.allclose(copies[:1], traced_under(tiny, noise_runs(tiny, asked, config, 1.0, seed=1)[0]))


@torch.no_grad()
def test_noise_has_the_moments_that_its_name_says(tiny, asked):
    """Additive: N(0, (3σ)²) of the embeddings' σ; multiplicative: a factor N(1, 5²). 288 values, tolerance 4 SE."""
    with Trace(tiny, ["projector.out"]) as acts:
        tiny(**asked.batch)
    clean = acts["projector.out"]
    std = embedding_std(tiny, [asked, asked], "projector.out")
    assert std == pytest.approx(float(clean.double().std(correction=0)), rel=1e-6)
    n = clean.numel()
    added = traced_under(tiny, noise_runs(tiny, asked, NoiseConfig(draws=1), std, 0)[0]) - clean
    assert float(added.std()) == pytest.approx(3 * std, rel=4 / (2 * n) ** 0.5)
    config = NoiseConfig(style="multiplicative", scale=5.0, draws=1)
    factor = traced_under(tiny, noise_runs(tiny, asked, config, std, 0)[0]) / clean
    assert float(factor.mean()) == pytest.approx(1, abs=4 * 5 / n**0.5)
    assert float(factor.std()) == pytest.approx(5, rel=4 / (2 * n) ** 0.5)


def test_noise_trace_restores_the_clean_run_from_the_image_tokens(tiny, pairs):
    """The noise enters through the image tokens only: at layer 0, restoring them all nearly is the clean run.

    Nearly: the tokens after the image have already looked at it once.
    """
    config = TraceConfig(
        image_positions="whole", text_positions="whole", max_samples=2, correct_only=False, readout="log_probability",
        noise=NoiseConfig(draws=2),
    )  # fmt: skip
    result = trace(tiny, pairs, config)
    assert result.groups == ("image", "question", "last")
    assert result.score_CRG.shape == (4, 4, 3)  # 2 samples × 2 draws, 4 layers
    assert result.n_total == 2
    assert len(result.images) == 2
    np.testing.assert_allclose(result.high_C[0], result.high_C[1], atol=1e-6)
    assert result.low_C[0] != result.low_C[1]


def test_dual_encoder_trace_reads_out_at_cls(tiny_clip, pairs):
    """After the last vision layer the image embedding is made of CLS alone: patches no longer matter."""
    config = TraceConfig(method="semantic_pair", image_positions="whole", correct_only=False, max_samples=3)
    result = trace(tiny_clip, pairs, config)
    assert result.readout == "cosine"
    assert result.groups == ("image", "CLS")
    assert result.rows[-1] == "vision.layers.3.resid_post"
    np.testing.assert_allclose(result.score_CRG[:, -1, 0], result.low_C, atol=1e-6)
    np.testing.assert_allclose(result.score_CRG[:, -1, 1], result.high_C, atol=1e-6)
    assert (np.abs(result.score_CRG[:, 0, 0] - result.low_C) > 1e-6).all()


def test_dual_encoder_full_restore_is_the_clean_run(tiny_clip, pairs):
    contrast = image_pair_contrasts(pairs)[0]
    text = contrast.clean.sample.caption
    runs = [single_run(tiny_clip, Query(each.sample, text)) for each in (contrast.clean, contrast.corrupt)]
    tokens = {"all": torch.arange(17)}  # CLS and 4 × 4 patches
    sites = [f"vision.layers.{layer}.resid_post" for layer in range(4)]
    result = activation_patch(tiny_clip, runs[:1], runs[1:], sites, [tokens], CosineReadout(tiny_clip))
    np.testing.assert_allclose(result.score_CRG[0, :, 0], result.high_C.repeat(4), atol=1e-6)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_unequal_pairs_and_missing_pairs_are_one_clear_line(tiny, pairs):
    """The byte tokenizer sees "red" and "blue" as 3 and 4 tokens."""
    with pytest.raises(DataError, match="number of tokens"):
        trace(tiny, pairs, TraceConfig(method="token_replacement"))
    unpaired = [sample for sample in pairs if sample.meta["pair"]["role"] == "clean"]
    with pytest.raises(DataError, match="trace=semantic_pair needs"):
        trace(tiny, unpaired, TraceConfig(method="semantic_pair"))


def test_sites_streams_and_readouts_that_a_model_lacks_are_named(tiny, tiny_clip, pairs):
    with pytest.raises(ConfigError, match="layers of tiny are 0 to 3"):
        trace(tiny, pairs, TraceConfig(method="semantic_pair", layers=[4]))
    with pytest.raises(ConfigError, match="dual encoder"):
        trace(tiny_clip, pairs, TraceConfig(method="semantic_pair", readout="logit_difference"))
    with pytest.raises(ConfigError, match=r"trace\.method"):
        TraceConfig(method="nosie")


def test_windows_are_cut_off_at_the_ends():
    """ROME: layers max(0, l - w // 2) … min(depth, l - (-w // 2)); ten around layer 6 of 12 are 1 … 10."""
    assert window(6, 10, 12) == (1, 11)
    assert window(0, 10, 12) == (0, 5)
    assert window(11, 3, 12) == (10, 12)
    assert window(5, 1, 12) == (5, 6)


@torch.no_grad()
def test_answer_readouts_are_consistent(tiny, cases):
    run = cases[0][0]
    log_p, p = (float(run_scores(tiny, run, AnswerReadout(tiny, kind))) for kind in ("log_probability", "probability"))
    assert np.exp(log_p) == pytest.approx(p, rel=1e-5)
    assert log_p == pytest.approx(float(tiny.answer_log_probs(run.batch).sum()), abs=1e-4)
