"""Streaming selection equals sorting everything at once, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmma.features.examples import ExampleCollector, StreamingTop

N, K = 230, 17


def scores() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 12, (N, K), generator=generator).float()  # many ties
    values[:, 0] = 0.0
    values[:, 1] = torch.where(torch.arange(N) == 77, 3.0, 0.0)
    return values


def collect(batch: int) -> ExampleCollector:
    collector = ExampleCollector(K, n_top=10, n_active=40, n_silent=5, seed=4)
    values = scores()
    for rows in torch.arange(N).split(batch):
        collector.add(values[rows], (rows[:, None] + torch.arange(K)) % 9, rows)
    return collector


@pytest.mark.parametrize("batch", [1, 7, 64, N])
def test_streaming_top_equals_full_sort(batch):
    collector, values = collect(batch), scores()
    for feature in range(K):
        order = sorted((i for i in range(N) if values[i, feature] > 0), key=lambda i: (-values[i, feature].item(), i))
        kept = [int(i) for i in collector.top.samples_KT[feature] if i >= 0]
        assert kept == order[:10]
        assert collector.top.values_KT[feature][: len(kept)].tolist() == values[kept, feature].tolist()
        assert collector.top.positions_KT[feature][: len(kept)].tolist() == [(i + feature) % 9 for i in kept]


def test_draws_do_not_depend_on_the_batch_size():
    one, all_at_once = collect(1), collect(N)
    assert torch.equal(one.active.samples_KT, all_at_once.active.samples_KT)
    assert torch.equal(one.silent.samples_KT, all_at_once.silent.samples_KT)


def test_silent_examples_are_silent_and_bands_descend():
    table, values = collect(32).table(np.arange(K)), scores()
    silent = table[table.band == "silent"]
    assert (values.numpy()[silent["sample"], silent["feature"]] == 0).all()
    for feature in range(2, K):
        own = table[table.feature == feature].groupby("band")["activation"]
        assert own.min()["top"] >= own.max()["q4"] >= own.min()["q4"] >= own.max()["q1"]


def test_dead_and_single_sample_features_have_no_padding():
    table = collect(32).table(np.array([0, 1]))
    assert set(table[table.feature == 0].band) == {"silent"}
    assert table[(table.feature == 1) & (table.band == "top")]["sample"].tolist() == [77]
    assert (table["sample"] >= 0).all()


def test_random_draw_of_activating_samples_is_uniform():
    """Each of 200 activating samples is kept with probability 40/200 by every feature (χ² over 300 features)."""
    collector = ExampleCollector(300, n_top=1, n_active=40, n_silent=1, seed=0)
    rows = torch.arange(200)
    collector.add(torch.ones(200, 300), torch.zeros(200, 300, dtype=torch.long), rows)
    counts = torch.bincount(collector.active.samples_KT.flatten(), minlength=200).double()
    chi_square = ((counts - 60) ** 2 / (60 * (1 - 40 / 200))).sum()
    assert chi_square < 200 + 4 * np.sqrt(2 * 200)


def test_unfilled_slots_are_marked():
    top = StreamingTop(1, 3)
    keys = torch.tensor([[2.0], [-torch.inf]])
    top.add(keys, torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), torch.tensor([5, 6]))
    assert top.samples_KT.tolist() == [[5, -1, -1]]
