"""The LLaVA adapter, on the published classes with tiny or memoryless random weights."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from cmma.data.samples import Sample
from cmma.errors import CmmaError, ConfigError, DataError
from cmma.modality import Modality
from cmma.models import load_model
from cmma.models.llava import LlavaModel
from cmma.models.sites import UnknownSite
from cmma.models.spec import ModelSpec


def spec(architecture: str, n_layers: int = 4, **changes) -> ModelSpec:
    fields = {"name": "tiny", "family": "llava", "weights": "random", "source": "", "prompt": "Describe."} | changes
    return ModelSpec(architecture=architecture, n_layers=n_layers, **fields)


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    shape, generator = (size[1], size[0], 3), torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).numpy())


SAMPLES = [Sample(str(i), picture((40 + 10 * i, 30), i), "a caption") for i in range(3)]
QUESTIONS = ["Is it red?", "How many shapes are there in the picture?", "Why?"]


@pytest.fixture(scope="module")
def tiny() -> LlavaModel:
    return load_model(spec("llava-tiny"))


@pytest.fixture(scope="module")
def tiny_next() -> LlavaModel:
    return load_model(spec("llava-next-tiny"))


@pytest.mark.parametrize(
    ("architecture", "n_layers", "billions", "width"),
    [("llava-1.5-7b", 32, 7.06, 4096), ("llava-1.5-13b", 40, 13.35, 5120), ("llava-v1.6-mistral-7b", 32, 7.57, 4096)],
)
def test_published_sizes(architecture, n_layers, billions, width):
    """Parameter counts that the hub shows for llava-hf/llava-1.5-7b-hf, -13b-hf and llava-v1.6-mistral-7b-hf."""
    model = load_model(spec(architecture, n_layers), device="meta", dtype="bfloat16")
    assert sum(p.numel() for p in model.module.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)
    assert model.record_width(0) == width
    assert f"language.layers.{n_layers - 1}.heads" in model.site_names()
    # feature layer −2 of 24: the output of the last vision block is never used
    assert "vision.layers.22.resid_post" in model.site_names()
    assert "vision.layers.23.resid_post" not in model.site_names()


def test_llava_1_5_sees_576_image_tokens():
    """(336 / 14)² patches, CLS dropped (Liu et al. 2024)."""
    model = load_model(spec("llava-1.5-7b", 32), device="meta")
    inputs = model.processor(images=[SAMPLES[0].image], text=[model.prompt("What is it?")], return_tensors="pt")
    assert int((inputs["input_ids"] == 32_000).sum()) == 576
    assert model.image_grid({}) == (24, 24)


def test_unknown_site_names_the_nearest(tiny):
    with pytest.raises(UnknownSite, match=r"language\.layers\.3\.resid_post"):
        tiny.site("language.layer.3.resid_post")


def test_a_wrong_depth_is_refused():
    with pytest.raises(ConfigError, match="n_layers=5"):
        load_model(spec("llava-tiny", n_layers=5))


def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone(tiny):
    before = torch.get_rng_state()
    again = load_model(spec("llava-tiny"))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(tiny.module.parameters(), again.module.parameters(), strict=True))
    other = load_model(spec("llava-tiny", seed=1))
    assert not torch.equal(tiny.module.lm_head.weight, other.module.lm_head.weight)


@torch.no_grad()
def test_padding_on_either_side_does_not_change_the_answer(tiny):
    left, right = (tiny.collate(SAMPLES, QUESTIONS, padding=side) for side in ("left", "right"))
    alone = torch.cat([tiny.prompt_logits(tiny.collate([s], [q])) for s, q in zip(SAMPLES, QUESTIONS, strict=True)])
    for batch in (left, right):
        torch.testing.assert_close(tiny.prompt_logits(batch), alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_both_attention_implementations_agree(tiny):
    eager = load_model(spec("llava-tiny", attention="eager"))
    batch = tiny.collate(SAMPLES, QUESTIONS)
    torch.testing.assert_close(eager.prompt_logits(batch), tiny.prompt_logits(batch), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_prompt_logits_are_those_of_the_whole_pass(tiny):
    batch = tiny.collate(SAMPLES, QUESTIONS)
    whole = tiny(**batch).logits[torch.arange(3), batch.prompt_end]
    torch.testing.assert_close(tiny.prompt_logits(batch), whole)


def test_modalities_partition_the_sequence(tiny):
    """BOS and padding dropped; 9 patches visual; the rest, with the answer, textual."""
    batch = tiny.collate(SAMPLES, QUESTIONS, ["yes", "four", "no"])
    modality = tiny.token_modality(batch)
    bos = batch["input_ids"] == tiny.tokenizer.bos_token_id
    assert torch.equal(modality == Modality.DROPPED, (batch["attention_mask"] == 0) | bos)
    assert (modality == Modality.VISUAL).sum(1).tolist() == [9, 9, 9]
    assert bool((modality[batch.answer_mask] == Modality.TEXTUAL).all())
    assert batch.answer_mask.sum(1).tolist() == [3, 4, 2]  # one token per byte
    assert torch.equal(tiny.image_positions(batch)[1], (modality[1] == Modality.VISUAL).nonzero()[:, 0])


def test_text_before_the_image_can_be_dropped():
    model = load_model(spec("llava-tiny", drop_system_prompt=True))
    modality = model.token_modality(model.collate(SAMPLES[:1], QUESTIONS[:1]))[0].tolist()
    first = modality.index(Modality.VISUAL)
    assert set(modality[:first]) == {Modality.DROPPED}
    assert Modality.DROPPED not in modality[first:]


@torch.no_grad()
def test_answer_log_probs_are_the_chain_rule(tiny):
    """log p(answer) token by token, against one unpadded pass per prefix."""
    batch = tiny.collate(SAMPLES[:2], QUESTIONS[:2], ["no", "three"])
    scored = tiny.answer_log_probs(batch)
    ids = tiny.answer_ids("no")
    expected = 0.0
    for n, token in enumerate(ids):
        prefix = tiny.collate(SAMPLES[:1], QUESTIONS[:1], [tiny.tokenizer.decode(ids[:n])] if n else None)
        expected += float(tiny(**prefix).logits[0, -1].log_softmax(-1)[token])
    assert float(scored[0].sum()) == pytest.approx(expected, abs=1e-5)
    assert bool((scored[~batch.answer_mask] == 0).all())


def test_greedy_generation_of_a_mixed_batch_equals_one_at_a_time(tiny):
    together = tiny.generate(tiny.collate(SAMPLES, QUESTIONS, padding="left"), 6)
    alone = [
        tiny.generate(tiny.collate([sample], [question], padding="left"), 6)
        for sample, question in zip(SAMPLES, QUESTIONS, strict=True)
    ]
    assert together == [text for texts in alone for text in texts]


def test_generation_wants_left_padding_and_no_answers(tiny):
    with pytest.raises(CmmaError, match="left"):
        tiny.generate(tiny.collate(SAMPLES, QUESTIONS), 2)
    with pytest.raises(CmmaError, match="without answers"):
        tiny.generate(tiny.collate(SAMPLES, QUESTIONS, ["a", "b", "c"], padding="left"), 2)


@torch.no_grad()
def test_llava_next_has_a_varying_number_of_image_tokens(tiny_next):
    """Base 3 × 3, then tiles at 6 × 6 unpadded to the aspect ratio, and a newline per row of tiles."""
    wide, square = Sample("w", picture((96, 48), 0), ""), Sample("s", picture((48, 48), 1), "")
    batch = tiny_next.collate([wide, square], ["a", "b"])
    counts = (tiny_next.token_modality(batch) == Modality.VISUAL).sum(1).tolist()
    assert counts == [9 + 3 * 6 + 3, 9 + 6 * 6 + 6]
    assert tiny_next.prompt_logits(batch).isfinite().all()
    alone = tiny_next.prompt_logits(tiny_next.collate([wide], ["a"]))
    torch.testing.assert_close(tiny_next.prompt_logits(batch)[:1], alone, atol=1e-5, rtol=1e-5)
    assert tiny_next.image_positions(batch).shape == (2, 9)


def test_rows_select_and_repeat_samples(tiny):
    batch = tiny.collate(SAMPLES, QUESTIONS, ["x", "yz", ""])
    twice = batch.rows([2, 0, 0])
    assert torch.equal(twice["pixel_values"][1], batch["pixel_values"][0])
    assert twice.prompt_end.tolist() == [batch.prompt_end[i].item() for i in (2, 0, 0)]
    assert torch.equal(twice.answer_mask[2], batch.answer_mask[0])


@torch.no_grad()
def test_a_saved_folder_is_the_same_model(tiny, tmp_path):
    """Loaded by cmma and, as an independent check of preprocessing and weights, by transformers alone."""
    tiny.module.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = load_model(spec("", weights="path", source=str(tmp_path)))
    batch = loaded.collate(SAMPLES[:1], QUESTIONS[:1])
    assert torch.equal(loaded(**batch).logits, tiny(**tiny.collate(SAMPLES[:1], QUESTIONS[:1])).logits)

    processor = AutoProcessor.from_pretrained(tmp_path)
    module = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    text = f"USER: <image>\n{QUESTIONS[0]} ASSISTANT:"
    assert torch.equal(module(**processor(SAMPLES[0].image, text, return_tensors="pt")).logits, loaded(**batch).logits)


def test_folders_that_are_not_whole_are_named(tiny, tmp_path):
    def load(**changes) -> None:
        load_model(spec("", weights="path", **changes))

    with pytest.raises(DataError, match="nowhere does not exist"):
        load(source=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no model absent ships"):
        load(source="builtin:absent")
    with pytest.raises(DataError, match=r"no \.safetensors file"):
        load(source=str(tmp_path))

    tiny.module.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="cannot be loaded"):  # no processor
        load(source=str(tmp_path))
    tiny.processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        load(source=str(tmp_path))
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop(next(name for name in tensors if name.endswith("lm_head.weight")))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match="lack 1 tensors"):
        load(source=str(tmp_path))


def test_the_hub_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot get llava-hf/absent .* model\.weights=random") as caught:
        load_model(spec("llava-1.5-7b", 32, weights="hub", source="llava-hf/absent"))
    assert "\n" not in str(caught.value)
