"""Models with a dictionary in place of their activations: ends of the scale, and passes written by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from cmma.causal.queries import caption_queries, question_queries
from cmma.causal.readout import collate_queries
from cmma.errors import DataError
from cmma.evaluation.spliced import (
    MEAN,
    ZERO,
    Answers,
    behaviours,
    constant,
    reconstruct,
    recovered,
    splice_in,
)
from cmma.models import load_model
from cmma.models.spec import ModelSpec, model_folder
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import preset
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples

LAYER = 1


@pytest.fixture(scope="module")
def samples():
    return list(generate_samples("balanced", 0, 6))


def load(family: str, architecture: str, prompt: str = ""):
    return load_model(ModelSpec(
        name=f"tiny {family}", family=family, weights="random", source="", architecture=architecture, n_layers=4,
        prompt=prompt,
    ))


@pytest.fixture(scope="module")
def models(tiny, tiny_clip):
    return {
        "llava": tiny, "clip": tiny_clip, "blip": load("blip", "blip-tiny"),
        "diffusion": load("stable_diffusion", "stable-diffusion-tiny"),
    }


def exact(model) -> torch.nn.Module:
    """A dictionary that explains everything: h = relu(h) − relu(−h)."""
    width, blocks = model.record_width(LAYER), model.record_blocks(LAYER)
    generator = torch.Generator().manual_seed(0)
    identity = Standardiser.identity(blocks)
    mean_MD = torch.randn(3, width, generator=generator) * identity.scale_MD
    sae = build_sae(preset("standard", n_latents=2 * width), width, Standardiser(mean_MD, identity.scale_MD, blocks))
    with torch.no_grad():
        for weight in (sae.W_enc, sae.W_dec):
            weight.copy_(torch.cat([torch.eye(width), -torch.eye(width)]))
        sae.b_enc.zero_()
    return sae


def silent(model) -> torch.nn.Module:
    """A dictionary that explains nothing: every record becomes the mean of its modality."""
    sae = exact(model)
    torch.nn.init.constant_(sae.b_enc, -1e6)
    return sae


def spliced(model, samples, replacements, which: int = 0):
    behaviour, queries = behaviours(model, samples, block=6)[which]
    mean_MD = exact(model).standardiser.mean_MD
    references = {MEAN: constant(mean_MD), ZERO: constant(torch.zeros_like(mean_MD))}
    return splice_in(model, LAYER, behaviour, queries, {**replacements, **references}, batch_size=4)


@pytest.mark.parametrize("family", ["llava", "clip", "blip", "diffusion"])
def test_all_is_recovered_by_the_identity_and_nothing_by_the_mean(models, samples, family):
    model = models[family]
    found = spliced(model, samples, {"exact": reconstruct(exact(model)), "silent": reconstruct(silent(model))})
    for tokens in ("all", "visual", "textual"):
        clean, mean = found.clean["loss"], found.edited[tokens, MEAN]["loss"]
        assert np.abs(mean - clean).max() > 1e-4, "the ablation has to do something"
        np.testing.assert_allclose(found.edited[tokens, "exact"]["loss"], clean, atol=2e-5)
        np.testing.assert_array_equal(found.edited[tokens, "silent"]["loss"], mean)


@pytest.mark.skipif(
    not list(model_folder("builtin:toy_llava").glob("*.safetensors")), reason="toy_llava's weights are not here")
def test_a_trained_model_recovers_all_of_its_loss_or_none(samples):
    model = load_model(ModelSpec())
    found = spliced(model, samples, {"exact": reconstruct(exact(model)), "silent": reconstruct(silent(model))}, which=1)
    rows = {(t, c, m): interval for t, c, m, interval in found.rows(n_resamples=50)}
    for tokens in ("all", "visual", "textual"):
        for reference in ("recovered", "recovered_from_zero"):
            name = f"caption_cross_entropy_{reference}"
            assert rows[tokens, "exact", name].value == pytest.approx(1, abs=1e-4)
            assert rows[tokens, "exact", name].n == 6
        assert rows[tokens, "silent", "caption_cross_entropy_recovered"].value == 0
        clean, mean = (rows[tokens, condition, "caption_cross_entropy"].value for condition in ("clean", MEAN))
        assert mean > clean + 0.1


def test_recovered_is_between_the_two_references():
    clean, ablated = np.array([1.0, 2.0, 3.0]), np.array([3.0, 3.0, 4.0])
    assert recovered(clean, clean, ablated).value == 1
    assert recovered(ablated, clean, ablated).value == 0
    assert recovered(clean + 1, clean, ablated).value == pytest.approx(1 / 4)  # (10 − 9) / (10 − 6)
    assert recovered(ablated + 4, clean, ablated).value == pytest.approx(-3)
    harmless = recovered(clean, clean, clean)
    assert np.isnan(harmless.value)
    assert harmless.kind == "undefined: the ablation does no harm"


def test_the_clean_loss_is_transformers_own(tiny, samples):
    """`labels` makes the network compute its own mean cross-entropy over the answer."""
    queries = question_queries(samples, per_sample=1)
    found = splice_in(tiny, LAYER, Answers(tiny, "answer"), queries, {}, batch_size=3).clean
    for row, query in enumerate(queries):
        batch = collate_queries(tiny, [query])
        labels = batch["input_ids"].masked_fill(~batch.answer_mask, -100)
        expected = tiny.module(**batch, labels=labels).loss
        assert found["loss"][row] / found["tokens"][row] == pytest.approx(float(expected), rel=1e-4)
    assert np.abs(found["kl"]).max() == 0


def test_a_spliced_pass_equals_one_with_a_plain_hook(tiny, samples):
    """The reconstruction written into the visual tokens by a forward hook of PyTorch, log-probabilities by hand."""
    sae = build_sae(preset("topk", n_latents=48, k=5), 32, Standardiser.identity((32,)), seed=1).requires_grad_(False)
    queries = question_queries(samples, per_sample=1)[:3]
    found = splice_in(tiny, LAYER, Answers(tiny, "answer"), queries, {"topk": reconstruct(sae)}).edited
    for row, query in enumerate(queries):
        batch = collate_queries(tiny, [query])
        visual_S = batch["input_ids"][0] == tiny.config.image_token_id

        def rewrite(module, inputs, output, visual_S=visual_S):
            new = output.clone()
            new[0, visual_S] = sae(output[0, visual_S]).reconstruction_BD
            return new

        clean_SV = tiny.module(**batch).logits[0].double().softmax(-1)
        handle = tiny.module.model.language_model.layers[LAYER].register_forward_hook(rewrite)
        spliced_SV = tiny.module(**batch).logits[0].double().softmax(-1)
        handle.remove()
        columns = batch.answer_mask[0].nonzero()[:, 0]
        ids = batch["input_ids"][0, columns]
        loss = -spliced_SV[columns - 1, ids].log().sum()
        kl = sum(entropy(clean_SV[c - 1].numpy(), spliced_SV[c - 1].numpy()) for c in columns)
        right = bool((spliced_SV[columns - 1].argmax(-1) == ids).all())
        assert found["visual", "topk"]["loss"][row] == pytest.approx(float(loss), rel=1e-4)
        assert found["visual", "topk"]["kl"][row] == pytest.approx(float(kl), rel=1e-2, abs=1e-6)
        assert found["visual", "topk"]["correct"][row] == right


def test_what_cannot_reach_the_answer_changes_nothing_to_the_bit(tiny, samples):
    """Above the last layer no token reads another, so the image's records there are free."""
    queries = question_queries(samples, per_sample=1)
    zero = {ZERO: constant(torch.zeros(3, 32))}
    found = splice_in(tiny, tiny.n_layers - 1, Answers(tiny, "answer"), queries, zero)
    assert np.array_equal(found.edited["visual", ZERO]["loss"], found.clean["loss"])
    assert not np.array_equal(found.edited["textual", ZERO]["loss"], found.clean["loss"])


def test_a_tower_does_not_feel_what_is_done_to_the_other(tiny_clip, samples):
    found = spliced(tiny_clip, samples, {})
    for tokens, changed, kept in (("visual", "image", "text"), ("textual", "text", "image")):
        np.testing.assert_allclose(found.edited[tokens, ZERO][kept], found.clean[kept], rtol=1e-5, atol=1e-6)
        assert np.abs(found.edited[tokens, ZERO][changed] - found.clean[changed]).max() > 1e-3
    image, text = found.clean["image"], found.clean["text"]
    cosine = [v @ t / np.linalg.norm(v) / np.linalg.norm(t) for v, t in zip(image, text, strict=True)]
    np.testing.assert_allclose(-found.clean["loss"], cosine, rtol=1e-5)


def test_the_denoising_loss_is_the_models_own(models, samples):
    model = models["diffusion"]
    found = spliced(model, samples, {})
    expected = model.denoising_error(collate_queries(model, caption_queries(samples)))
    np.testing.assert_allclose(found.clean["loss"], expected.detach().numpy(), rtol=1e-4)


def test_what_a_model_is_measured_by(models, samples):
    names = {family: [b.loss for b, _ in behaviours(model, samples)] for family, model in models.items()}
    assert names == {
        "llava": ["answer_cross_entropy", "caption_cross_entropy"], "clip": ["pair_cosine"],
        "blip": ["answer_cross_entropy"], "diffusion": ["denoising_loss"],
    }
    mute = [replace(sample, caption="", meta={}) for sample in samples]
    with pytest.raises(DataError, match="needs questions or captions"):
        behaviours(models["llava"], mute)
