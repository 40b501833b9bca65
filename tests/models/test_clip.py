"""The CLIP adapter, on open_clip's own classes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cmma.data.samples import Sample
from cmma.errors import CmmaError, ConfigError, DataError
from cmma.hooks import Trace
from cmma.modality import Modality
from cmma.models import load_model
from cmma.models.clip import TINY, ClipModel
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples


def spec(**changes) -> ModelSpec:
    fields = {"weights": "random", "source": "", "architecture": "clip-tiny", "n_layers": 4} | changes
    return ModelSpec(name="tiny", family="clip", **fields)


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=generator).numpy())


SAMPLES = [Sample("0", picture(0), "a red circle"), Sample("1", picture(1), "two large blue squares left of a cross")]


@pytest.fixture(scope="module")
def tiny() -> ClipModel:
    return load_model(spec())


@pytest.fixture
def photo() -> Image.Image:
    photos = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos"
    if not photos.is_dir():
        pytest.skip("no photographs beside the repository")
    return Image.open(sorted(photos.glob("*.jpg"))[0]).convert("RGB")


@torch.no_grad()
def test_full_size_vit_b32_on_a_photograph(photo):
    """151.3 million parameters (Radford et al. 2021, as counted by open_clip); preprocessing is open_clip's own."""
    model = load_model(spec(architecture="ViT-B-32-quickgelu", n_layers=12))
    assert sum(p.numel() for p in model.module.parameters()) / 1e6 == pytest.approx(151.28, abs=0.01)
    assert model.record_blocks(5) == (768, 512)
    assert model.image_grid({}) == (7, 7)
    batch = model.collate([Sample("p", photo, "a photograph")])
    preprocess = open_clip.image_transform(224, is_train=False, interpolation="bicubic", resize_mode="shortest")
    assert torch.equal(batch["image"][0], preprocess(photo))
    image, text = model.embeddings(model(**batch))
    torch.testing.assert_close(torch.stack([image.norm(), text.norm()]), torch.ones(2))


@torch.no_grad()
def test_a_folder_in_the_format_of_open_clip_loads_the_same(tmp_path):
    """Weights in the one-class layout (as published checkpoints have it) give the same embeddings as open_clip."""
    torch.manual_seed(3)
    original = open_clip.model.CLIP(quick_gelu=True, **deepcopy(TINY)).eval()
    save_file(original.state_dict(), tmp_path / "open_clip_model.safetensors")
    mean = [0.5, 0.5, 0.5]
    config = {"model_cfg": {**TINY, "quick_gelu": True}, "preprocess_cfg": {"mean": mean, "std": mean}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = load_model(spec(weights="path", source=str(tmp_path), architecture=None))
    batch = model.collate(SAMPLES)
    image, text = model.embeddings(model(**batch))
    torch.testing.assert_close(image, original.encode_image(batch["image"], normalize=True))
    whole = model.tokenizer([sample.caption for sample in SAMPLES])  # open_clip takes a full context
    torch.testing.assert_close(text, original.encode_text(whole, normalize=True))
    assert batch["image"].min() >= -1
    assert batch["image"].max() <= 1

    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        load_model(spec(weights="path", source=str(tmp_path), architecture=None))


@torch.no_grad()
def test_records_are_the_three_views_of_a_pair(tiny):
    batch = tiny.collate(SAMPLES)
    vision, text = tiny.record_sites(1)
    assert (vision.site, text.site) == ("vision.layers.1.resid_post", "text.layers.0.resid_post")  # half way up both
    with Trace(tiny, [vision.site, text.site]) as acts:
        tiny(**batch)
    vectors, modality, position = tiny.records(acts, batch, 1)
    d = vision.width
    seen, read, joint = (modality == code for code in (Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT))
    assert seen.sum(1).tolist() == [17, 17]  # CLS and 4 × 4 patches
    assert read.sum(1).tolist() == [4, 9]  # words and EOT; BOS and padding dropped
    assert torch.equal(vectors[seen][:, :d].view(2, 17, d), acts[vision.site])
    assert not vectors[seen][:, d:].any()
    assert not vectors[read][:, :d].any()
    row, column = read.nonzero(as_tuple=True)
    assert torch.equal(vectors[read][:, d:], acts[text.site][row, position[row, column]])
    end = tiny.pooled_position(batch, Modality.TEXTUAL)
    assert torch.equal(vectors[joint], torch.cat([acts[vision.site][:, 0], acts[text.site][[0, 1], end]], dim=1))
    assert position[joint].tolist() == [-1, -1]


@torch.no_grad()
def test_context_is_the_mean_of_near_equal_spans(tiny):
    """17 image tokens in 4 spans: 5, 4, 4, 4; 4 text tokens: one each."""
    batch = tiny.collate(SAMPLES)
    vision, text = tiny.record_sites(3)
    with Trace(tiny, [vision.site, text.site]) as acts:
        tiny(**batch)
    context = tiny.context(acts, batch, 3)
    spans = acts[vision.site][0].split([5, 4, 4, 4])
    torch.testing.assert_close(context[0, 0, :, : vision.width], torch.stack([span.mean(0) for span in spans]))
    torch.testing.assert_close(context[0, 1, :, vision.width :], acts[text.site][0, 1:5])
    few = tiny.context(acts, batch, 3, n=6)
    assert not few[0, 1, 4:].any()  # four words fill four of six vectors
    assert not context[:, 1, :, : vision.width].any()


@torch.no_grad()
def test_similarity_is_the_cosine_matrix(tiny):
    batch = tiny.collate(SAMPLES)
    image, text = tiny.module.encode_image(batch["image"]), tiny.module.encode_text(batch["text"])
    expected = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(tiny.similarity(batch), expected)


@torch.no_grad()
def test_half_precision_agrees_to_its_rounding(tiny):
    """bfloat16 has 8 significant bits."""
    half = load_model(spec(), dtype="bfloat16")
    batch = half.collate(SAMPLES)
    assert {half.dtype, batch["image"].dtype} == {torch.bfloat16}
    exact = tiny.similarity(tiny.collate(SAMPLES))
    torch.testing.assert_close(half.similarity(batch).float(), exact, atol=0.03, rtol=0)


def test_a_dual_encoder_does_not_generate(tiny):
    with pytest.raises(CmmaError, match="cannot generate"):
        tiny.generate(tiny.collate(SAMPLES), 3)
    with pytest.raises(ConfigError, match="answers"):
        tiny.collate(SAMPLES, answers=["a", "b"])


def test_unknown_architectures_and_tags_are_refused():
    with pytest.raises(ConfigError, match="ViT-Q-1"):
        load_model(spec(architecture="ViT-Q-1"))
    with pytest.raises(ConfigError, match="laion400m_e32"):
        load_model(spec(weights="hub", source="nobody", architecture="ViT-B-32-quickgelu"))


@torch.no_grad()
def test_cutting_the_padding_off_changes_no_embedding(tiny):
    samples = list(generate_samples("balanced", 0, 2))
    batch = tiny.collate(samples, ["a red ring.", "a ring"])
    assert batch["text"].shape[1] < tiny.module.context_length
    whole = batch | {"text": tiny.tokenizer(["a red ring.", "a ring"])}
    assert whole["text"].shape[1] == tiny.module.context_length
    for short, long in zip(tiny.embeddings(tiny(**batch)), tiny.embeddings(tiny(**whole)), strict=True):
        torch.testing.assert_close(short, long, atol=1e-6, rtol=0)
