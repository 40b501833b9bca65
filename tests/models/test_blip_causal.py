"""Causal experiments on a model in which one record stream reads the other: the plain way is always a whole pass."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from cmma.causal.attribution import attribute
from cmma.causal.config import TraceConfig
from cmma.causal.corruptions import contrast_runs
from cmma.causal.intervening import queries_for
from cmma.causal.modules import trace_rows
from cmma.causal.patching import activation_patch
from cmma.causal.positions import position_groups
from cmma.causal.queries import image_pair_contrasts, question_queries
from cmma.causal.readout import collate_queries, make_readout
from cmma.causal.tracing import trace
from cmma.cmig.ablation import FeatureAblation
from cmma.errors import ConfigError, DataError
from cmma.hooks import splice
from cmma.hooks.resume import EditedPasses, can_resume
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples

LAYER = 1
FEATURES = [3, 7, 11, 20]
SETS = [(), (3,), (7,), (20,), (3, 7), (7, 20), (3, 11, 20)]


@pytest.fixture(scope="module")
def tiny():
    fields = {"family": "blip", "weights": "random", "source": "", "prompt": "", "n_layers": 4}
    return load_model(ModelSpec(name="tiny", architecture="blip-tiny", **fields))


@pytest.fixture(scope="module")
def sae(tiny):
    blocks, width = tiny.record_blocks(LAYER), tiny.record_width(LAYER)
    generator = torch.Generator().manual_seed(0)
    present_MD = Standardiser.identity(blocks).scale_MD
    mean_MD = torch.randn(3, width, generator=generator) * 0.1 * present_MD
    scale_MD = torch.tensor([0.5, 2.0, 1.0])[:, None] * present_MD
    built = build_sae(preset("standard", n_latents=24), width, Standardiser(mean_MD, scale_MD, blocks), generator)
    return built.requires_grad_(False)


@pytest.fixture(scope="module")
def queries():
    return question_queries(generate_samples("balanced", 0, 3), per_sample=1)


@pytest.fixture(scope="module")
def readout(tiny):
    return make_readout(tiny, "log_probability", "log_probability")


@torch.no_grad()
def whole_passes(tiny, sae, queries, readout, off, tokens):
    """One sample at a time, the latents edited by the dictionary itself in the streams as they then are."""
    values = []
    for query in queries:
        with splice(tiny, LAYER, sae.edit(ablate=off, tokens=tokens)) if off else nullcontext():
            values.append(float(readout(collate_queries(tiny, [query]), [query])))
    return np.array(values)


@pytest.mark.parametrize("tokens", ["all", "visual", "textual"])
def test_ablated_sets_equal_one_whole_pass_each(tiny, sae, queries, readout, tokens):
    """An ablation in the image changes which features the question encoder has: no latent may be kept from before."""
    ablation = FeatureAblation(
        tiny, sae, LAYER, collate_queries(tiny, queries), queries, FEATURES, readout, tokens, rows_at_once=5
    )
    plain = np.stack([whole_passes(tiny, sae, queries, readout, off, tokens) for off in SETS])
    np.testing.assert_allclose(ablation(SETS), plain, atol=1e-4)
    assert np.abs(plain - plain[0]).max() > 1e-2
    assert not ablation.resumes


def test_edited_passes_are_whole(tiny, sae, queries, readout):
    assert not can_resume(tiny, LAYER)
    passes = EditedPasses(tiny, LAYER, collate_queries(tiny, queries), partial(readout, queries=queries))
    assert not passes.resumes
    for off in SETS[1:4]:
        expected = whole_passes(tiny, sae, queries, readout, off, "all")
        np.testing.assert_allclose(passes(sae.edit(ablate=off)).numpy(), expected, atol=1e-4)


def test_attribution_is_the_derivative_through_both_streams(tiny, sae, queries, readout):
    """Scaling a feature by 1 − ε changes the readout by ε times its attribution, the image's part included."""
    query = queries[:1]
    found = attribute(tiny, sae, LAYER, query, readout)
    ablation = FeatureAblation(tiny, sae, LAYER, collate_queries(tiny, query), query, FEATURES, readout)
    share, none = 1e-2, torch.zeros(len(FEATURES), dtype=torch.long)
    up, down = (ablation._run(none, sign * share * torch.eye(len(FEATURES))) for sign in (1, -1))
    slope = ((up - down) / (2 * share)).numpy()
    np.testing.assert_allclose(found.effect_K[FEATURES].numpy(), slope, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("stream", ["text", "vision", "decoder"])
def test_a_resumed_trace_is_the_trace_of_whole_passes(tiny, stream, monkeypatch):
    """Patching one tower may resume there: what the others hold is what the corrupt run gave them."""
    contrast = image_pair_contrasts(generate_samples("pairs", 0, 2))[0]
    clean, corrupt = contrast_runs(tiny, contrast)
    rows = trace_rows(tiny, stream, TraceConfig(method="semantic_pair"))
    groups = [position_groups(tiny, clean, corrupt, stream)]
    score = make_readout(tiny, "log_probability", "log_probability")
    resumed = activation_patch(tiny, [clean], [corrupt], rows, groups, score, correct_only=False)
    monkeypatch.setattr("cmma.causal.patching.why_whole", lambda *_: "asked for")
    whole = activation_patch(tiny, [clean], [corrupt], rows, groups, score, correct_only=False)
    np.testing.assert_allclose(resumed.score_CRG, whole.score_CRG, atol=1e-4)
    assert np.ptp(whole.score_CRG) > 1e-3


def test_restoring_the_whole_question_encoder_is_the_clean_run(tiny):
    """The answer reads nothing but the finished question."""
    contrast = image_pair_contrasts(generate_samples("pairs", 0, 2))[0]
    clean, corrupt = contrast_runs(tiny, contrast)
    score = make_readout(tiny, "log_probability", "log_probability")
    everything = {"question": torch.arange(clean.batch["input_ids"].shape[1])}
    found = activation_patch(
        tiny, [clean], [corrupt], ["text.layers.3.resid_post"], [everything], score, correct_only=False
    )
    assert found.score_CRG[0, 0, 0] == pytest.approx(found.high_C[0], abs=1e-4)
    assert abs(found.high_C[0] - found.low_C[0]) > 1e-3


def test_groups_of_the_three_streams(tiny):
    contrast = image_pair_contrasts(generate_samples("pairs", 0, 2))[0]
    clean, corrupt = contrast_runs(tiny, contrast)
    text = position_groups(tiny, clean, corrupt, "text")
    length = int(clean.batch["attention_mask"].sum())
    assert text["CLS"].tolist() == [0]
    assert text["last"].tolist() == [length - 1]
    assert text[f"last-{length - 2}"].tolist() == [1]
    assert position_groups(tiny, clean, corrupt, "decoder")["start"].tolist() == [0]
    assert "CLS" in position_groups(tiny, clean, corrupt, "vision")
    with pytest.raises(ConfigError, match="position groups in text, vision, decoder"):
        position_groups(tiny, clean, corrupt, "language")


def test_a_noise_trace_corrupts_what_the_question_encoder_reads(tiny):
    samples = list(generate_samples("balanced", 0, 2))
    found = trace(tiny, samples, TraceConfig(max_samples=2, correct_only=False, text_positions="whole"))
    assert found.rows[0] == "text.layers.0.resid_post"
    assert np.isfinite(found.score_CRG).any()
    assert (found.low_C != found.high_C).all()


def test_data_without_questions_is_one_line(tiny):
    samples = list(generate_samples("balanced", 0, 2, questions_per_image=0))
    with pytest.raises(DataError, match="answers questions and writes no captions") as caught:
        queries_for(tiny, samples)
    assert "\n" not in str(caught.value)
