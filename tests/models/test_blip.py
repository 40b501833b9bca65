"""The BLIP adapter on the published class with tiny or memoryless random weights; transformers alone is the oracle."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import BlipForQuestionAnswering, BlipProcessor

from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.hooks import Edit, TokenEdit, Trace
from cmma.modality import Modality
from cmma.models import load_model
from cmma.models.blip import BlipModel
from cmma.models.spec import ModelSpec

QUESTIONS = ["Is it red?", "How many shapes are there in the picture?", "Why?"]
HALVE = TokenEdit(lambda acts_ND, modality_N, where: acts_ND * 0.5 + acts_ND.roll(1, dims=-1), tokens="every")


def spec(architecture: str = "blip-tiny", n_layers: int = 4, **changes) -> ModelSpec:
    fields = {"name": "tiny", "family": "blip", "weights": "random", "source": "", "prompt": ""} | changes
    return ModelSpec(architecture=architecture, n_layers=n_layers, **fields)


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


SAMPLES = [Sample(str(i), picture(i), "a caption") for i in range(3)]


@pytest.fixture(scope="module")
def tiny() -> BlipModel:
    return load_model(spec())


def plain_logits(model: BlipModel, sample: Sample, question: str, answer_A: torch.Tensor) -> torch.Tensor:
    """Logits [A, V] after each given answer token, from transformers' forward pass of one unpadded question."""
    inputs = model.processor(images=sample.image, text=question, return_tensors="pt")
    found = []
    handle = model.module.text_decoder.register_forward_hook(lambda _, __, output: found.append(output.logits[0]))
    model.module(**inputs, decoder_input_ids=answer_A[None])
    handle.remove()
    return found[0]


def test_the_published_size():
    """The hub shows 384,672,572 parameters for Salesforce/blip-vqa-base: its file holds the output words apart."""
    model = load_model(spec("blip-vqa-base", 12), device="meta")
    assert sum(p.numel() for p in model.module.parameters()) + 30_524 * 768 == 384_672_572
    assert model.image_grid({}) == (24, 24)
    assert model.record_blocks(5) == (768, 768)
    assert model.site("decoder.layers.11.cross_heads").port == "input"


@torch.no_grad()
def test_a_batch_of_unequal_questions_is_each_question_alone(tiny):
    """transformers' decoder attends to the padding of shorter questions (modeling_blip_text.py, BlipTextLayer)."""
    batch = tiny.collate(SAMPLES, QUESTIONS, ["yes", "four", "no"])
    logits_BAV = tiny(**batch).logits
    for row, (sample, question) in enumerate(zip(SAMPLES, QUESTIONS, strict=True)):
        span = int(batch.answer_mask[row].sum()) + 1
        alone_AV = plain_logits(tiny, sample, question, batch["decoder_input_ids"][row, :span])
        torch.testing.assert_close(logits_BAV[row, :span], alone_AV, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_the_mask_a_batch_would_differ(tiny):
    """The fault of transformers is there; the day it is mended, `_keep_mask` can go."""
    plain = BlipForQuestionAnswering(tiny.config).eval()
    plain.load_state_dict(tiny.module.state_dict())
    batch = tiny.collate(SAMPLES, QUESTIONS)
    found = []
    plain.text_decoder.register_forward_hook(lambda _, __, output: found.append(output.logits))
    plain(**batch)
    difference_B = (found[0] - tiny(**batch).logits).abs().amax(dim=(1, 2))
    assert difference_B[1] < 1e-5  # the longest question
    assert (difference_B[[0, 2]] > 1e-3).all()


def test_greedy_answers_are_those_of_transformers_generate(tiny):
    together = tiny.generate(tiny.collate(SAMPLES, QUESTIONS, padding="left"), 6)
    for sample, question, answer in zip(SAMPLES, QUESTIONS, together, strict=True):
        inputs = tiny.processor(images=sample.image, text=question, return_tensors="pt")
        tokens = tiny.module.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert answer == tiny.processor.decode(tokens[0], skip_special_tokens=True).strip()
    assert len(set(together)) == 3


@torch.no_grad()
def test_answer_logits_give_the_chain_rule(tiny):
    batch = tiny.collate(SAMPLES[:2], QUESTIONS[:2], ["no", "three"])
    logits_BCV, ids_BC, answer_BC = tiny.answer_logits(batch)
    log_p_BC = logits_BCV.log_softmax(-1).gather(-1, ids_BC[..., None])[..., 0]
    ids = tiny.answer_ids("no")
    start = tiny.config.text_config.bos_token_id
    expected = sum(
        float(plain_logits(tiny, SAMPLES[0], QUESTIONS[0], torch.tensor([start, *ids[:n]]))[-1].log_softmax(-1)[token])
        for n, token in enumerate(ids)
    )
    assert float(log_p_BC[0][answer_BC[0]].sum()) == pytest.approx(expected, abs=1e-4)
    assert answer_BC.sum(dim=1).tolist() == [2, 5]  # one token per byte
    torch.testing.assert_close(tiny.prompt_logits(batch), logits_BCV[:, 0])


SITES = {
    "vision.embed": ("vision_model.embeddings", "output"),
    "vision.layers.1.heads": ("vision_model.encoder.layers.1.self_attn.projection", "input"),
    "vision.norm": ("vision_model.post_layernorm", "output"),
    "text.embed": ("text_encoder.embeddings", "output"),
    "text.layers.1.attn_out": ("text_encoder.encoder.layer.1.attention.output.dense", "output"),
    "text.layers.2.cross_heads": ("text_encoder.encoder.layer.2.crossattention.output.dense", "input"),
    "text.layers.2.cross_attn_out": ("text_encoder.encoder.layer.2.crossattention.output.dense", "output"),
    "text.layers.3.resid_post": ("text_encoder.encoder.layer.3", "output"),
    "decoder.layers.0.resid_pre": ("text_decoder.bert.encoder.layer.0", "input"),
    "decoder.layers.3.mlp_out": ("text_decoder.bert.encoder.layer.3.output.dense", "output"),
}


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_an_edit_at_a_site_is_what_a_hook_by_hand_does(tiny, site):
    path, port = SITES[site]
    batch = tiny.collate(SAMPLES, QUESTIONS, ["yes", "four", "no"])
    clean = tiny(**batch).logits
    with Edit(tiny, site, HALVE):
        ours = tiny(**batch).logits

    def change(acts):
        return acts * 0.5 + acts.roll(1, dims=-1)

    module = tiny.module.get_submodule(path)
    if port == "input":
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: change(output))
    theirs = tiny(**batch).logits
    handle.remove()
    assert torch.equal(ours, theirs)
    assert (ours - clean).abs().max() > 1e-3
    assert torch.equal(tiny(**batch).logits, clean)  # every hook is gone


@pytest.mark.parametrize("site", ["text.layers.2.resid_post", "decoder.layers.2.mlp_out"])
@torch.no_grad()
def test_generation_under_an_edit_is_generation_without_a_cache(tiny, site):
    """Cached decoding against whole passes over the answer so far, one more token each time."""
    batch = tiny.collate(SAMPLES, QUESTIONS)
    with Edit(tiny, site, HALVE):
        ours = tiny.generate(batch, 4, eos_token_id=None)
        for _ in range(4):
            new_B1 = tiny(**batch).logits[:, -1:].argmax(-1)
            batch["decoder_input_ids"] = torch.cat([batch["decoder_input_ids"], new_B1], dim=1)
    said = tiny.tokenizer.batch_decode(batch["decoder_input_ids"][:, 1:], skip_special_tokens=True)
    assert ours == [text.strip() for text in said]
    assert ours != tiny.generate(tiny.collate(SAMPLES, QUESTIONS), 4, eos_token_id=None)


@torch.no_grad()
def test_phases_of_generation(tiny):
    """The encoders run before the first new token only; the decoder's first word is decided in the prefill."""
    steps = []

    def note(acts_ND, modality_N, where):
        steps.append(where.step)
        return acts_ND

    for site, expected in (("text.layers.0.resid_post", [0]), ("decoder.layers.0.resid_post", [0, 1, 2])):
        steps.clear()
        with Edit(tiny, site, TokenEdit(note)):
            tiny.generate(tiny.collate(SAMPLES, QUESTIONS), 3, eos_token_id=None)
        assert steps == expected


@torch.no_grad()
def test_records_are_pair_views_of_both_towers(tiny):
    """Of 3 vision and 4 text layers: layer 1 is half way and pairs vision block ⌈3/2⌉ − 1 = 1 with text block 1."""
    places = tiny.record_sites(1)
    assert [place.site for place in places] == ["vision.layers.1.resid_post", "text.layers.1.resid_post"]
    assert [place.site.split(".")[2] for place in tiny.record_sites(3)] == ["2", "3"]
    batch = tiny.collate(SAMPLES, QUESTIONS)
    with Trace(tiny, [place.site for place in places]) as acts:
        tiny(**batch)
    vectors_BSD, modality_BS, position_BS = tiny.records(acts, batch, 1)
    image_BPV, text_BTW = (acts[place.site] for place in places)
    assert vectors_BSD.shape == (3, 10 + batch["input_ids"].shape[1] + 1, 64)
    assert torch.equal(vectors_BSD[:, :10, :32], image_BPV)
    assert torch.equal(vectors_BSD[:, 10:-1, 32:], text_BTW)
    assert torch.equal(vectors_BSD[:, -1], torch.cat([image_BPV[:, 0], text_BTW[:, 0]], dim=1))
    assert (modality_BS == Modality.TEXTUAL).sum(1).tolist() == batch["attention_mask"].sum(1).tolist()
    assert (modality_BS == Modality.VISUAL).sum(1).tolist() == [10, 10, 10]
    assert (modality_BS[:, -1] == Modality.JOINT).all()
    assert position_BS[0, -1] == -1
    assert tiny.image_positions(batch)[2].tolist() == list(range(1, 10))


def test_a_sample_without_a_question_is_one_line(tiny):
    with pytest.raises(ConfigError, match=r"tiny answers questions and writes no captions, .*'1'") as caught:
        tiny.collate(SAMPLES, ["Why?", "", "Why?"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="writes no captions"):
        tiny.collate(SAMPLES)
    assert not tiny.captions


@torch.no_grad()
def test_a_saved_folder_is_the_same_model(tiny, tmp_path):
    tiny.module.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = load_model(spec("", weights="path", source=str(tmp_path)))
    batch = loaded.collate(SAMPLES, QUESTIONS)
    assert torch.equal(loaded(**batch).logits, tiny(**tiny.collate(SAMPLES, QUESTIONS)).logits)
    BlipProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="truncated"):
        load_model(spec("", weights="path", source=str(tmp_path)))


def test_equal_seeds_give_equal_weights(tiny):
    again, other = load_model(spec()), load_model(spec(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(tiny.module.parameters(), again.module.parameters(), strict=True))
    assert not torch.equal(*(model.module.vision_model.embeddings.class_embedding for model in (tiny, other)))
