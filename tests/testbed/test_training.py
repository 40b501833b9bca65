"""The training code: packed turns are the single-turn prompt, a resumed run is the undisturbed one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from cmma.testbed.generate import generate_samples
from cmma.testbed.training.bootstrap import image_ratio
from cmma.testbed.training.llava_data import IGNORE, TurnBatches, patch_labels, pixel_values
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.packed_attention import LAYOUT, NAME
from cmma.testbed.training.toy_llava import PROMPT, build_config, build_model, build_processor
from cmma.testbed.world import sample_scenes


def test_a_packed_turn_is_the_single_turn_prompt():
    model = build_model(0, build_config(n_layers=2)).eval()
    batch = TurnBatches(batch=2, steps=1, seed=0)[0]
    processor = build_processor()
    with torch.no_grad():
        model.model.language_model.set_attn_implementation(NAME)
        packed_BSV = model(
            input_ids=batch["input_ids"], pixel_values=batch["pixel_values"],
            position_ids=LAYOUT.positions().expand(2, -1), use_cache=False,
        ).logits  # fmt: skip
        model.model.language_model.set_attn_implementation("sdpa")
        image = next(generate_samples("train", 0, 1, seed=0)).image
        for at in (LAYOUT.prefix, LAYOUT.head, LAYOUT.head + 3 * LAYOUT.short):
            counted = torch.nonzero(batch["targets"][0, at : at + LAYOUT.short] != IGNORE)[0].item() + 1
            text = processor.tokenizer.decode(batch["input_ids"][0, at : at + counted])
            alone = processor(
                images=[image], text=[PROMPT.format(question=text.removesuffix(" ASSISTANT:"))], return_tensors="pt"
            )
            expected_SV = model(**alone).logits[0]
            assert alone["input_ids"].shape[1] == LAYOUT.prefix + counted
            torch.testing.assert_close(
                packed_BSV[0, at : at + counted], expected_SV[LAYOUT.prefix :], atol=1e-4, rtol=1e-4
            )


def test_training_pixels_are_the_processors():
    sample = next(generate_samples("balanced", 3, 4, seed=1))
    expected = build_processor().image_processor(sample.image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values(np.array(sample.image)[None]), expected, atol=1e-5, rtol=0)


def test_patch_labels_count_four_patches_per_visible_object():
    scenes = sample_scenes(500, "train", seed=1)
    labels = patch_labels(scenes)
    visible = (scenes.present & scenes.visible).sum(axis=1)
    assert np.array_equal((labels["presence"] == 1).sum(dim=1).numpy(), 4 * visible)
    assert torch.equal(labels["shape"] == IGNORE, labels["presence"] == 0)


class _Lines(Dataset):
    """Step → points of a fixed line, a function of the step alone."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return x, x.sum(dim=1, keepdim=True)


def test_a_killed_run_continues_to_the_same_weights(assert_resumes):
    def run(folder, tick):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))

        def loss(batch):
            tick()
            return (model(batch[0]) - batch[1]).square().mean(), {}

        recipe = Recipe(steps=30, batch=8, lr=1e-2, warmup=5)
        train(model, recipe, _Lines(), loss, folder / "stage.safetensors", save_every=0.0)
        return model.state_dict()

    assert_resumes(run, kill_at=17)


def test_bootstrap_interval_of_a_proportion_is_the_binomial_one():
    hits = np.repeat([1, 0], [300, 100])
    estimate = image_ratio(hits, np.ones(400))
    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert estimate["value"] == 0.75
    assert estimate["low"] == pytest.approx(0.75 - half_width, abs=0.006)
    assert estimate["high"] == pytest.approx(0.75 + half_width, abs=0.006)
