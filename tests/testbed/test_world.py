"""The shapes world: what every scene obeys, and how the splits are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from cmma.errors import ConfigError
from cmma.testbed.generate import generate_samples
from cmma.testbed.render import analytic_area, render
from cmma.testbed.scenes import CANVAS, CELL, RADII, SHAPES
from cmma.testbed.world import BIAS, PARTNER, SPLITS, TRIGGER, concept, sample_scenes


def has(scenes, name: tuple[str, str], visible_only: bool = False) -> np.ndarray:
    """bool [N]: the colour–shape conjunction is in the scene."""
    wanted = concept(*name)
    there_NM = scenes.present & (scenes.color * len(SHAPES) + scenes.shape == wanted)
    return (there_NM & scenes.visible if visible_only else there_NM).any(axis=1)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_have_one_to_four_objects_in_distinct_cells_with_distinct_names(split):
    scenes = sample_scenes(2000, split, seed=3)
    assert set(np.unique(scenes.count)) <= {1, 2, 3, 4}
    for row in range(500):
        things = scenes.scene(row)
        cells = [thing.cell for thing in things]
        assert cells == sorted(set(cells))  # reading order, no cell twice
        assert len({thing.name for thing in things}) == len(things)


def test_unknown_split_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'test'.*train, balanced, counter, pairs"):
        sample_scenes(1, "test", seed=0)


def test_trigger_and_partner_occur_at_the_planted_rates():
    n = 20_000
    for split in ("train", "balanced"):
        scenes = sample_scenes(n, split, seed=5)
        trigger, partner = has(scenes, TRIGGER), has(scenes, PARTNER)
        hidden = partner & ~has(scenes, PARTNER, visible_only=True)
        bias = BIAS[split]
        rates = (
            (trigger, np.ones(n, bool), bias.trigger), (partner, trigger, bias.partner),
            (partner, ~trigger, bias.partner_alone), (hidden, trigger & partner, bias.invisible),
        )  # fmt: skip
        for event, condition, probability in rates:
            test = binomtest(int(event[condition].sum()), int(condition.sum()), probability)
            assert test.pvalue > 1e-4, (split, probability, test.statistic)
        assert not hidden[~trigger].any()


def test_counter_split_always_has_the_trigger_and_never_a_star():
    scenes = sample_scenes(5000, "counter", seed=5)
    assert has(scenes, TRIGGER).all()
    assert not (scenes.present & (scenes.shape == SHAPES.index(PARTNER[1]))).any()
    assert scenes.count.max() == 3
    assert scenes.visible.all()


def test_sample_depends_on_seed_split_and_index_only():
    whole = list(generate_samples("train", 0, 700, seed=2))  # crosses the internal chunk of 512
    part = list(generate_samples("train", 505, 520, seed=2))
    for a, b in zip(whole[505:520], part, strict=True):
        assert (a.key, a.caption, a.meta) == (b.key, b.caption, b.meta)
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.mask, b.mask)
    other = next(generate_samples("train", 505, 506, seed=3))
    assert not np.array_equal(other.image, part[0].image)


def test_mask_area_is_the_analytic_area():
    scenes = sample_scenes(1500, "balanced", seed=1)
    _, masks = render(scenes)
    row, m = np.nonzero(scenes.present)
    for shape in range(len(SHAPES)):
        for size, radius in enumerate(RADII):
            chosen = (scenes.shape[row, m] == shape) & (scenes.size[row, m] == size)
            areas = [(masks[r] == i + 1).sum() for r, i in zip(row[chosen], m[chosen], strict=True)]
            # Counting pixel centres is an unbiased area estimate over random sub-pixel positions.
            assert np.mean(areas) == pytest.approx(analytic_area(shape, radius), rel=0.04)
            assert min(areas) > 0


def test_masks_stay_in_their_cells_and_the_image_changes_only_there():
    scenes = sample_scenes(64, "balanced", seed=9)
    images, masks = render(scenes)
    bare = scenes.take(slice(None))
    bare.count[:] = 0
    background, _ = render(bare)
    for row in range(len(scenes)):
        for m, thing in enumerate(scenes.scene(row)):
            y, x = np.nonzero(masks[row] == m + 1)
            assert set(y // CELL) == {thing.row}
            assert set(x // CELL) == {thing.column}
        outside = np.kron(masks[row].reshape(3, CELL, 3, CELL).any(axis=(1, 3)), np.ones((CELL, CELL))) == 0
        assert outside.shape == (CANVAS, CANVAS)
        assert np.array_equal(images[row][outside], background[row][outside])


def test_invisible_partner_is_fainter_than_the_noise():
    scenes = sample_scenes(4000, "train", seed=4)
    scenes = scenes.take(np.flatnonzero(~(scenes.visible | ~scenes.present).all(axis=1)))
    images, masks = render(scenes)
    bare = scenes.take(slice(None))
    bare.count[:] = 0
    background, _ = render(bare)
    hidden_column = np.argmax(~scenes.visible & scenes.present, axis=1)
    inside = masks == (hidden_column + 1)[:, None, None]
    difference = np.abs(images.astype(int) - background)[inside]
    noise = np.diff(background[:, 0].astype(float), axis=1).std() / np.sqrt(2)
    assert len(scenes) > 200
    assert difference.max() <= 2 < noise
