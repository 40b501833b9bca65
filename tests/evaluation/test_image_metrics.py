"""Image metrics against the libraries that define them, with random weights: their arithmetic is what is compared."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from skimage.metrics import structural_similarity
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.functional.image.lpips import _LPIPS

from cmma.errors import DataError
from cmma.evaluation.aesthetic import WIDTHS, aesthetic_scores, load_head
from cmma.evaluation.frechet import Moments, frechet_distance
from cmma.evaluation.inception import RESIZE, inception_features, load_inception
from cmma.evaluation.kernel_distance import cmmd
from cmma.evaluation.lpips import load_lpips, lpips
from cmma.evaluation.ssim import ssim


def picture(seed: int, width: int = 70, height: int = 50) -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(coarse) * 0.8 + rng.integers(0, 50, (height, width, 3))).astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names of the published file."""
    torch.manual_seed(0)
    network = torchvision.models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(layer.running_var, 0.1, 0.2)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_legacy_features_equal_torch_fidelity(inception_weights: Path):
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(inception_weights))
    images = [picture(0), picture(1)]
    expected = theirs(torch.cat([tensor(image) for image in images]))[0].numpy()
    ours = inception_features(load_inception(inception_weights), images, "legacy")
    assert ours.shape == (2, 2048)
    spread = np.abs(ours[0] - ours[1]).max()  # the images are told apart
    assert np.abs(ours - expected).max() < 1e-3 * spread


@pytest.mark.parametrize("size", [(70, 50), (400, 310)])
def test_each_resize_is_that_of_its_library(size: tuple[int, int]):
    image = picture(2, *size)
    pixels = tensor(image).float()
    legacy = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)
    assert torch.allclose(RESIZE["legacy"](image), legacy, atol=1e-3)
    torchmetrics = F.interpolate(pixels, (299, 299), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(RESIZE["torchmetrics"](image), torchmetrics)
    bicubic = np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC), np.float32)  # rounded at the end
    clean = RESIZE["clean"](image)[0].permute(1, 2, 0).numpy()
    assert np.abs(clean - bicubic).max() <= 3
    assert np.abs(clean - bicubic).mean() < 0.4
    variants = [RESIZE[name](image) for name in RESIZE]
    assert all((a - b).abs().mean() > 0.05 for a, b in pairwise(variants))


def test_distance_equals_torch_fidelitys_and_pytorch_fids():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(200, 30)) @ rng.normal(size=(30, 30)) + shift for shift in (0, 1))
    ours = frechet_distance(Moments(30).update(a), Moments(30).update(b), "fid_legacy").value
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (a, b)]
    assert ours == pytest.approx(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID], rel=1e-9)
    # pytorch-fid ≥ 0.3.1: the trace of the root is the sum of the roots of the product's eigenvalues.
    (mu_a, cov_a), (mu_b, cov_b) = ((s["mu"], s["sigma"]) for s in statistics)
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    assert ours == pytest.approx(((mu_a - mu_b) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * roots, rel=1e-9)


def test_cmmd_by_explicit_loops():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(9, 6)), rng.normal(size=(7, 6)) + 0.5

    def mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
        pairs = [(p / np.linalg.norm(p), q / np.linalg.norm(q)) for p in x for q in y]
        return float(np.mean([np.exp(-((p - q) ** 2).sum() / (2 * 10**2)) for p, q in pairs]))

    expected = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(DataError, match="one width"):
        cmmd(a, b[:, :3])


def test_ssim_equals_scikit_image():
    first, second = picture(3), picture(4)
    theirs = structural_similarity(
        np.asarray(first), np.asarray(second), gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=255, channel_axis=-1,
    )  # fmt: skip
    assert ssim(first, second) == pytest.approx(theirs, abs=1e-9)
    assert ssim(first, first) == pytest.approx(1)
    with pytest.raises(DataError, match="below the window"):
        ssim(picture(0, 10, 10), picture(1, 10, 10))


@pytest.mark.parametrize(("trunk", "network"), [
    ("alex", torchvision.models.alexnet), ("squeeze", torchvision.models.squeezenet1_1),
])  # fmt: skip
def test_lpips_with_a_trunk_from_a_file(tmp_path: Path, trunk, network):
    """The same trunk, put into torchmetrics' distance layer by layer."""
    torch.manual_seed(0)
    model = network(weights=None)
    path = tmp_path / "trunk.pth"
    torch.save(model.state_dict(), path)
    theirs = _LPIPS(net=trunk, pnet_rand=True)
    layers = [layer for name, layer in theirs.net.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    sources = [layer for name, layer in model.features.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer, source in zip(layers, sources, strict=True):
        layer.load_state_dict(source.state_dict())
    first, second = picture(5), picture(6)
    expected = theirs(*(tensor(image).float() / 255 for image in (first, second)), normalize=True).item()
    distance = load_lpips(trunk, path)
    assert lpips(distance, first, second) == pytest.approx(expected, rel=1e-5)
    assert lpips(distance, first, first) == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match=r"not the weights of torchvision's trunk for LPIPS \(vgg\)"):
        load_lpips("vgg", path)


def test_the_aesthetic_head_is_one_matrix(tmp_path: Path):
    """Without activations five layers are one affine map; the published file counts its dropout layers."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in pairwise(WIDTHS)]
    biases = [rng.normal(size=b) for b in WIDTHS[1:]]
    state = {}
    for number, weight, bias in zip((0, 2, 4, 6, 7), weights, biases, strict=True):
        state |= {f"layers.{number}.weight": torch.tensor(weight), f"layers.{number}.bias": torch.tensor(bias)}
    path = tmp_path / "head.pth"
    torch.save(state, path)
    image_ND = rng.normal(size=(4, 768)) * 7
    x = image_ND / np.linalg.norm(image_ND, axis=1, keepdims=True)
    for weight, bias in zip(weights, biases, strict=True):
        x = x @ weight.T + bias
    head = load_head(path)
    assert aesthetic_scores(head, image_ND) == pytest.approx(x[:, 0], rel=1e-4)
    with pytest.raises(DataError, match="768 dimensions"):
        aesthetic_scores(head, image_ND[:, :512])


def test_weights_that_cannot_be_used_are_one_line(tmp_path: Path):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"not weights")
    whole = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), whole)  # a pickled module could run anything
    short = tmp_path / "short.safetensors"
    short.write_bytes(b"short")
    for path in (tmp_path / "none.pth", bad, whole, short):
        with pytest.raises(DataError, match=f"{path.name} is missing, damaged or more than tensors") as error:
            load_inception(path)
        assert "\n" not in str(error.value)
    torch.save([1, 2], bad)
    with pytest.raises(DataError, match="is not a dictionary of tensors"):
        load_inception(bad)
