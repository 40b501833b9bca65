"""Fréchet and kernel distance against scipy, torchmetrics and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torchmetrics.image.kid import poly_mmd

from cmma.errors import DataError
from cmma.evaluation.frechet import Moments, distance_name, frechet_distance, gaussian_distance
from cmma.evaluation.kernel_distance import kernel_distance, mmd2


def features(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def through_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as FID implementations compute it."""
    shift, cov_a, cov_b = a.mean(0) - b.mean(0), np.cov(a.T), np.cov(b.T)
    return shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(linalg.sqrtm(cov_a @ cov_b)).real


def test_equals_scipys_sqrtm():
    a, b = features(300, 24, 0), features(200, 24, 1)
    ours = frechet_distance(Moments(24).update(a), Moments(24).update(b), "fd_test")
    assert ours.value == pytest.approx(through_sqrtm(a, b), rel=1e-9)
    assert (ours.n_first, ours.n_second, ours.d, ours.rank_deficient) == (300, 200, 24, False)


@given(st.lists(st.tuples(*[st.floats(0.1, 10)] * 2, st.floats(-5, 5)), min_size=1, max_size=6), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_commuting_gaussians_have_a_closed_form(axes: list[tuple[float, float, float]], seed: int):
    """Σ (s₁ − s₂)² + shift², in any rotation of the axes (Dowson & Landau 1982)."""
    s1, s2, shift = np.array(axes).T
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(axes),) * 2))[0]
    first, second = (rotation * s1**2) @ rotation.T, (rotation * s2**2) @ rotation.T
    value = gaussian_distance(np.zeros(len(axes)), first, rotation @ shift, second)
    assert value == pytest.approx(((s1 - s2) ** 2 + shift**2).sum(), abs=1e-7 * (s1**2 + s2**2).sum())


def test_moments_do_not_depend_on_batches_or_processes():
    x = features(500, 8, 2) + 1e6  # far from zero: naive sums of squares would cancel
    whole, parts, other = Moments(8).update(x), Moments(8), Moments(8)
    for chunk in np.array_split(x[:300], 7):
        parts.update(chunk)
    other.update(x[300:]).update(x[:0])
    parts.merge(other).merge(Moments(8))
    assert parts.n == whole.n == 500
    assert np.allclose(parts.mean_D, x.mean(0), rtol=1e-14)
    assert np.allclose(parts.covariance_DD, np.cov(x.T), rtol=1e-8)


def test_fewer_images_than_dimensions_is_marked_and_still_right(capsys):
    a, b = features(10, 30, 3), features(12, 30, 4)
    ours = frechet_distance(Moments(30).update(a), Moments(30).update(b), "fd_small")
    # tr(Σa Σb)^½ is the nuclear norm of the centred feature matrices' product: no root of a singular matrix needed.
    overlap = np.linalg.svd((a - a.mean(0)) @ (b - b.mean(0)).T, compute_uv=False).sum() / np.sqrt(9 * 11)
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * overlap
    assert ours.value == pytest.approx(expected, rel=1e-5)
    assert ours.rank_deficient
    assert "fd_small: 10 images for 30 dimensions" in " ".join(capsys.readouterr().err.split())


def test_distance_to_itself_is_zero():
    x = Moments(16).update(features(100, 16, 5))
    assert frechet_distance(x, x, "fd_test").value == pytest.approx(0, abs=1e-8)


def test_unusable_features_are_refused():
    with pytest.raises(DataError, match="NaN"):
        Moments(2).update(np.array([[np.nan, 0]]))
    with pytest.raises(DataError, match="at least two images; there are 1"):
        frechet_distance(Moments(2).update(np.ones((1, 2))), Moments(2).update(np.ones((2, 2))), "fd")
    with pytest.raises(DataError, match="2 and of 3 dimensions"):
        frechet_distance(Moments(2), Moments(3), "fd")


def test_only_inception_features_are_called_fid():
    assert distance_name("toy_clip") == "fd_toy_clip"
    assert distance_name("inception_v3", "clean") == "fid_clean"
    assert distance_name("inception_v3", "legacy", prefix="kid") == "kid_legacy"
    with pytest.raises(DataError, match="'tf2' is not one of legacy, clean, torchmetrics"):
        distance_name("inception_v3", "tf2")


def test_kernel_distance_equals_torchmetrics():
    a, b = features(60, 12, 6), features(60, 12, 7)
    assert mmd2(a, b) == pytest.approx(poly_mmd(torch.tensor(a), torch.tensor(b)).item(), rel=1e-10)
    whole = kernel_distance(a, b, "kd_test", subsets=3, subset_size=1000)
    assert (whole.value, whole.subset_size) == (pytest.approx(mmd2(a, b)), 60)  # subsets are the whole sets
    assert whole.deviation == pytest.approx(0, abs=1e-9 * whole.value)


def test_kernel_distance_is_unbiased_between_equal_distributions():
    values = [mmd2(*np.random.default_rng(i).normal(size=(2, 40, 6))) for i in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
