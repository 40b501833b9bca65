"""The edit and the loops around it, on tiny random models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.causal.interventions import Intervention, generate_images
from cmma.causal.queries import caption_queries
from cmma.control.config import ControlConfig
from cmma.control.edits import Contrasts, FeatureChange, Setting
from cmma.control.makers import CaptionMaker, ImageMaker, Made, make_maker
from cmma.control.run import _edited
from cmma.control.scoring import facts_of_image
from cmma.control.trials import VALUES, Trial, draw_trials
from cmma.errors import ConfigError
from cmma.hooks import Trace
from cmma.hooks.prompts import reading
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples
from cmma.testbed.parser import parse_images

SAMPLES = [s for s in generate_samples("balanced", 0, 20) if all(o["visible"] for o in s.objects)][:6]
CONFIG = ControlConfig(steps=3, guidance=2.0, batch_size=4, max_new_tokens=3)


@pytest.fixture(scope="module")
def tiny_sd():
    fields = {"name": "tiny", "family": "stable_diffusion", "weights": "random", "source": "", "n_layers": 4}
    return load_model(ModelSpec(architecture="stable-diffusion-tiny", **fields))


@pytest.fixture(scope="module")
def maker(tiny_sd, dictionary):
    return ImageMaker(tiny_sd, dictionary(tiny_sd, 0, caption_queries(SAMPLES)), 0, CONFIG)


@pytest.fixture(scope="module")
def before():
    """As if the model had made each scene: the real image."""
    scenes = parse_images([sample.image for sample in SAMPLES])
    return [Made(facts_of_image(scene), s.image) for scene, s in zip(scenes, SAMPLES, strict=True)]


def pixels(made):
    return np.stack([np.asarray(each.image) for each in made])


@pytest.mark.parametrize("tokens", ["textual", "visual"])
def test_no_strength_changes_nothing_and_a_late_start_keeps_the_first_steps(maker, before, tokens):
    contrasts = maker.contrasts(SAMPLES, before, tokens)
    trials = draw_trials(SAMPLES, "shape", 0)
    features = [contrasts.features(trial, 8) for trial in trials]
    shown = dict(zip((s.key for s in SAMPLES), before, strict=True))

    def made(strength, start=0.0):
        return pixels(_edited(maker, contrasts, shown, trials, features, Setting(tokens, 8, strength, start)))

    plain = pixels(maker.make(SAMPLES))
    assert np.abs(made(0.0).astype(int) - plain).max() <= 1  # float rounding of the second pass
    assert not np.array_equal(made(5.0), plain)
    assert not np.array_equal(made(5.0), made(5.0, start=0.4))


def test_contrasts_are_means_over_the_tokens_of_objects(maker, before):
    """Against an explicit loop over samples and words."""
    found = maker.contrasts(SAMPLES, before, "textual")
    site = maker.model.record_sites(0)[1].site
    total, count = torch.zeros(maker.sae.n_latents), 0
    for sample in SAMPLES:
        with torch.no_grad(), Trace(maker.model, [site]) as acts:
            maker.model.encode_prompts([sample.caption])
        words = sample.caption.replace(",", " ,").replace(".", " .").split()
        for thing in sample.objects:
            if thing["shape"] != "circle":
                continue
            phrase = [thing[name] for name in ("size", "texture", "color", "shape")]
            start = next(i for i in range(len(words)) if words[i : i + 4] == phrase)
            ahead = maker.model.tokenizer(" ".join(words[: start + 3]), add_special_tokens=False)["input_ids"]
            position = 1 + len(ahead)
            record_1D = torch.zeros(1, maker.sae.d)
            record_1D[:, -acts[site].shape[-1] :] = acts[site][0, position]
            total += maker.sae.encode(record_1D, torch.tensor([1]))[0]
            count += 1
    torch.testing.assert_close(found.mean("shape", "circle")[3, 0], total / count, rtol=1e-4, atol=1e-5)
    assert found.counts["shape"][VALUES["shape"].index("circle"), 3, 0] == count


def test_a_change_moves_features_by_the_difference_of_means(maker):
    """One token, one attribute: a' − a = γ (target − source) where that stays positive, and nothing else is decoded."""
    contrasts = Contrasts.empty(12, 1, maker.sae.n_latents)
    trial = draw_trials(SAMPLES[:1], "color", 0)[0]
    contrasts.counts["color"] += 1
    contrasts.sums["color"][VALUES["color"].index(trial.target), 3, 0, 7] = 2.0
    slots = maker.slots(SAMPLES[:1], [], "textual")
    assert contrasts.features(trial, 1) == (7,)
    change = FeatureChange(maker.sae, [trial], [(7,)], contrasts, slots, 1.5)
    site = maker.model.record_sites(0)[1].site
    with torch.no_grad():
        with Trace(maker.model, [site]) as plain:
            maker.model.encode_prompts([trial.sample.caption])
        with maker._under(change.edit(), 1), Trace(maker.model, [site]) as edited:
            maker.model.encode_prompts([trial.sample.caption])
    difference_SD = (edited[site] - plain[site])[0]
    role_S, thing_S = slots.role_BS[0], slots.thing_BS[0]
    (position,) = ((role_S == 3) & (thing_S == trial.objects[0])).nonzero()[0].tolist()
    feature_D = maker.sae.standardiser.restore_difference(3.0 * maker.sae.W_dec[[7]], torch.tensor([1]))[0]
    torch.testing.assert_close(difference_SD[position], feature_D[-32:], rtol=1e-4, atol=1e-5)
    assert (difference_SD.abs().amax(-1) > 1e-5).nonzero().flatten().tolist() == [position]


@torch.no_grad()
def test_reading_another_prompt_everywhere_is_that_prompt(tiny_sd):
    mine, other = [sample.caption for sample in SAMPLES[:2]], [sample.caption for sample in SAMPLES[2:4]]
    plain, wanted = (tiny_sd.generate_images(texts, [1, 2], 3, 2.0) for texts in (mine, other))
    text = tiny_sd.encode_prompts(other)

    def same(images, others):
        images, others = (np.stack([np.asarray(image) for image in some]).astype(int) for some in (images, others))
        return np.abs(images - others).max() <= 1

    with reading(tiny_sd, text):
        assert same(tiny_sd.generate_images(mine, [1, 2], 3, 2.0), wanted)
    with reading(tiny_sd, text, first_step=3):
        assert same(tiny_sd.generate_images(mine, [1, 2], 3, 2.0), plain)
    with reading(tiny_sd, tiny_sd.encode_prompts(mine), blocks=[1]):
        assert same(tiny_sd.generate_images(mine, [1, 2], 3, 2.0), plain)
    with reading(tiny_sd, text, blocks=[1]):
        assert not same(tiny_sd.generate_images(mine, [1, 2], 3, 2.0), plain)


def test_captions_are_edited_where_the_object_is(tiny, dictionary, queries):
    maker = CaptionMaker(tiny, dictionary(tiny, 1, queries), 1, CONFIG)
    slots = maker.slots(SAMPLES, [], "visual")
    batch = tiny.collate(SAMPLES, padding="left")
    first_B = tiny.image_positions(batch)[:, 0]
    for row, sample in enumerate(SAMPLES):  # 3 × 3 patches, 3 × 3 cells
        there = (slots.thing_BS[row] >= 0).nonzero().flatten() - first_B[row]
        assert there.tolist() == sorted(thing["cell"] for thing in sample.objects)
    trial = Trial(SAMPLES[0], "size", (0,), "small")
    assert slots.of([trial])[0].sum() == 1
    assert len(maker.changed(draw_trials(SAMPLES, "shape", 0))) == len(SAMPLES)


def test_a_model_that_makes_nothing_is_named(tiny_clip):
    with pytest.raises(ConfigError, match="neither images nor captions"):
        make_maker(tiny_clip, None, 0, CONFIG)


def test_images_of_an_intervention_change_and_their_sources_fit_the_guided_batch(tiny_sd, maker):
    density_K = torch.ones(maker.sae.n_latents)
    for kind, strength in (("amplify", 20.0), ("substitute", 0.0)):
        made = generate_images(
            tiny_sd, maker.sae, 0, SAMPLES[:3], Intervention(kind, (1, 2, 3, 4), strength), density_K=density_K,
            steps=2, guidance=2.0, batch_size=2,
        )  # fmt: skip
        assert made.keys == tuple(sample.key for sample in SAMPLES[:3])
        plain = tiny_sd.generate_images([SAMPLES[2].caption], [Trial(SAMPLES[2], "", (), "").noise_seed], 2, 2.0)
        assert np.array_equal(np.asarray(made.before[2]), np.asarray(plain[0]))
        assert not np.array_equal(np.asarray(made.after[2]), np.asarray(plain[0]))
