"""The driver on tiny models of both families, against encoding everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.features.collect import choose_pages, collect, feature_table
from cmma.features.concepts import halves
from cmma.features.encode import encode_samples, token_texts
from cmma.features.maps import example_table, logit_effects
from cmma.features.masks import cell_coverage, concept_mask, mask_iou
from cmma.hooks.trace import Trace
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.sae.architectures.registry import build_sae
from cmma.sae.config import SAEConfig
from cmma.sae.standardiser import Standardiser
from cmma.testbed.generate import generate_samples

LAYER, K = 1, 48


def load(family: str):
    return load_model(ModelSpec(name="tiny", family=family, weights="random", source="", architecture=f"{family}-tiny",
                                n_layers=4, prompt="Describe."))


def dictionary(model, **options):
    blocks, width = model.record_blocks(LAYER), model.record_width(LAYER)
    sae = build_sae(SAEConfig(arch="topk", n_latents=K, k=6, **options), width, Standardiser.identity(blocks))
    return sae.eval()


@pytest.fixture(scope="module")
def samples():
    return list(generate_samples("balanced", 0, 24, seed=3))


@pytest.fixture(scope="module", params=["llava", "clip"])
def run(request, samples):
    model = load(request.param)
    sae = dictionary(model)
    return model, sae, collect(model, sae, LAYER, samples, batch_size=7, n_examples=4)


def everything(model, sae, sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and modality of one sample's records, by the adapter's own record arrangement."""
    answers = [sample.caption] if model.kind == "generative" else None
    batch = model.collate([sample], None, answers)
    with torch.no_grad(), Trace(model, [entry.site for entry in model.record_sites(LAYER)]) as acts:
        model(**batch)
    records = model.records(acts, batch, LAYER)
    kept = (records.modality[0] == 0) | (records.modality[0] == 1)
    modality = records.modality[0][kept]
    return sae.encode(records.vectors[0][kept], modality).detach(), modality


def test_streamed_totals_equal_encoding_each_sample_alone(run, samples):
    model, sae, data = run
    for index in (0, 9, 23):
        latents, modality = everything(model, sae, samples[index])
        for row in (0, 1):
            own = latents[modality == row]
            torch.testing.assert_close(data.sums.sums_NMK[index, row], own.sum(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(data.sums.maxima_NMK[index, row], own.amax(0), rtol=1e-4, atol=1e-4)
            assert data.sums.tokens_NM[index, row] == len(own)


def test_table_has_one_row_per_latent_and_counts_add_up(run, samples):
    _, _, data = run
    table = feature_table(data, samples, n_resamples=50, embeddings_ND=torch.randn(len(samples), 5))
    assert table["feature"].tolist() == list(range(K))
    counts = np.stack(table["histogram_visual"]).sum(1) + np.stack(table["histogram_textual"]).sum(1)
    np.testing.assert_array_equal(counts, data.sums.active_MK.sum(0).numpy())
    assert ((table["density"] == 0) == (table["class"] == "dead")).all()
    assert table["monosemanticity"].dropna().between(-1 - 1e-9, 1 + 1e-9).all()


def test_examples_show_the_activation_they_were_chosen_for(run, samples):
    model, sae, data = run
    pages = choose_pages(feature_table(data, samples, n_resamples=20), 6)
    table = example_table(model, sae, LAYER, samples, data, pages, batch_size=5)
    rows, columns = model.image_grid(model.collate(samples[:1]))
    assert set(table["feature"]) == set(pages.tolist())
    for row in table.itertuples():
        assert len(row.heat) == row.grid_rows * row.grid_cols == rows * columns
        assert len(row.tokens) == len(row.token_activations)
        strongest = max([*row.heat, *row.token_activations])
        if model.kind == "generative":  # every visual token is a patch
            assert strongest == pytest.approx(row.activation, rel=1e-3, abs=1e-4)
        if row.band == "silent":
            assert strongest == 0.0


def test_words_read_as_the_caption(samples):
    model = load("clip")
    found = next(iter(encode_samples(model, dictionary(model), LAYER, samples[:1])))
    words = "".join(found.tokens).replace(" ", "").lower()
    assert samples[0].caption.replace(" ", "").lower() in words


def test_attention_dictionaries_read_the_other_modality(samples):
    """The context of a visual token is textual: changing the caption changes what an open gate lets in."""
    model = load("llava")
    sae = dictionary(model, attention=True)
    with torch.no_grad():
        for name, value in sae.attention.named_parameters():
            if "gate" in name:
                value.fill_(1.0)
    own, = encode_samples(model, sae, LAYER, samples[:1])
    plain, = encode_samples(model, dictionary(model), LAYER, samples[:1])
    assert not torch.equal(own.latents_TK, plain.latents_TK)


def test_logit_effects_are_the_unembedding_times_the_direction():
    model = load("llava")
    sae = dictionary(model)
    table = logit_effects(model, sae, LAYER, [3, 7], top=5)
    effects = model.module.lm_head.weight.float() @ sae.W_dec[7].detach()
    best = table[(table.feature == 7) & (table.sign == "+")].sort_values("rank")
    np.testing.assert_allclose(best["value"], effects.sort(descending=True).values[:5].detach(), rtol=1e-5)
    assert best["token"].iloc[0] == token_texts(model.tokenizer, [int(effects.argmax())])[0]
    assert logit_effects(load("clip"), sae, LAYER, [0]) is None


def test_a_floor_above_every_activation_leaves_nothing(samples):
    model = load("llava")
    data = collect(model, dictionary(model), LAYER, samples[:3], floor=1e9)
    assert data.sums.dead_K.all()
    assert data.histogram.counts_MKH.sum() == 0
    assert (data.examples.top.samples_KT == -1).all()


def test_iou_of_the_driver_equals_pixel_masks(samples):
    model = load("llava")
    sae = dictionary(model)
    data = collect(model, sae, LAYER, samples)
    visual = data.sums.maxima_NMK[:, 0]
    feature = int((visual > 0).sum(0).argmax())
    result = mask_iou(model, sae, LAYER, samples, {feature: "ring"}, visual).iloc[0]
    both = either = 0
    scored = set(halves(len(samples))[1].tolist())
    for found in encode_samples(model, sae, LAYER, samples):
        if found.index in scored:
            mask = concept_mask(samples[found.index], "ring")
            on = found.latents_TK[found.patches_P, feature].view(found.grid) > result["iou_threshold"]
            side = np.arange(mask.shape[0]) * found.grid[0] // mask.shape[0]
            pixels = on.numpy()[np.ix_(side, side)]
            both, either = both + (pixels & mask).sum(), either + (pixels | mask).sum()
    assert result["iou"] == pytest.approx(both / either)
    assert cell_coverage(mask, 1, 1)[0, 0] == mask.sum()
