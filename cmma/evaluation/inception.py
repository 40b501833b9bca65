"""The Inception network of FID, and the three ways to bring images to its 299 pixels.

It is TensorFlow's Inception of 2015, as the file of pytorch-fid and torch-fidelity holds it
(`inception-2015-12-05-6726825d.pth`): torchvision's layers, but averages that leave the padding out, and a maximum in
the last block.

    legacy        bilinear as TensorFlow 1 did it, without antialiasing (torch-fidelity; the original FID)
    clean         bicubic with antialiasing by Pillow on floats (clean-fid; Parmar et al. 2022, arXiv 2104.11222)
    torchmetrics  bilinear with antialiasing by torch (torchmetrics 1.8 and later)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import BasicConv2d, Inception3, InceptionE

from cmma.artifacts.tensors import read_tensors
from cmma.errors import DataError

SIZE = 299
N_CLASSES = 1008


class _UnpaddedPool(BasicConv2d):
    """The convolution behind a 3 × 3 average: undoes the zeros that the average counted along the border."""

    def forward(self, pooled_BCHW: Tensor) -> Tensor:
        inside_HW = F.avg_pool2d(torch.ones_like(pooled_BCHW[:1, :1]), kernel_size=3, stride=1, padding=1)
        return super().forward(pooled_BCHW / inside_HW)


class _MaximumBlock(InceptionE):
    """The last block: a maximum where torchvision has an average."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        wide_BCHW, double_BCHW = self.branch3x3_1(x_BCHW), self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW))
        return torch.cat([
            self.branch1x1(x_BCHW), self.branch3x3_2a(wide_BCHW), self.branch3x3_2b(wide_BCHW),
            self.branch3x3dbl_3a(double_BCHW), self.branch3x3dbl_3b(double_BCHW),
            self.branch_pool(F.max_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1)),
        ], dim=1)  # fmt: skip


def load_inception(weights: Path) -> nn.Module:
    """The network up to its 2,048 pooled features. Raises DataError for a file that is not its weights."""
    network = Inception3(num_classes=N_CLASSES, aux_logits=False, transform_input=False, init_weights=False)
    network.Mixed_7c = _MaximumBlock(2048)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        block = getattr(network, f"Mixed_{name}")
        conv = block.branch_pool.conv
        block.branch_pool = _UnpaddedPool(conv.in_channels, conv.out_channels, kernel_size=1)
    try:
        network.load_state_dict(read_tensors(weights, DataError))
    except RuntimeError as error:
        raise DataError(f"{weights}: not the weights of FID's Inception; take the file of pytorch-fid or "
                        "torch-fidelity (…inception-2015-12-05-6726825d.pth)") from error
    network.fc = nn.Identity()
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def inception_features(network: nn.Module, images: list[Image.Image], variant: str) -> np.ndarray:
    """float32[N, 2048] of RGB images of any size; `variant` names the resize (see the module)."""
    device = next(network.parameters()).device
    pixels_BCHW = torch.cat([RESIZE[variant](image) for image in images]).to(device)
    return network((pixels_BCHW - 128) / 128).float().cpu().numpy()


def _pixels(image: Image.Image) -> Tensor:
    """Float[1, 3, H, W], 0 to 255."""
    return torch.from_numpy(np.array(image.convert("RGB"), np.float32)).permute(2, 0, 1)[None]


def _legacy(image: Image.Image) -> Tensor:
    """TensorFlow 1: output pixel i lies at i · (in / out), corners not aligned, half pixels ignored."""
    pixels_1CHW = _pixels(image)
    for dim in (2, 3):
        n = pixels_1CHW.shape[dim]
        place_S = torch.arange(SIZE, dtype=torch.float32) * torch.tensor(n / SIZE, dtype=torch.float32)
        low_S = place_S.long()
        share_S = (place_S - low_S).reshape((-1, 1) if dim == 2 else (-1,))
        low, high = (pixels_1CHW.index_select(dim, index_S) for index_S in (low_S, (low_S + 1).clamp(max=n - 1)))
        pixels_1CHW = low + (high - low) * share_S
    return pixels_1CHW


def _clean(image: Image.Image) -> Tensor:
    """Pillow, channel by channel on floats, so that nothing is rounded."""
    channels = [
        np.array(Image.fromarray(channel_HW.numpy()).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for channel_HW in _pixels(image)[0]
    ]
    return torch.from_numpy(np.stack(channels)[None].clip(0, 255))


def _torchmetrics(image: Image.Image) -> Tensor:
    return F.interpolate(_pixels(image), size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)


RESIZE = {"legacy": _legacy, "clean": _clean, "torchmetrics": _torchmetrics}
"""Variant → resize to Float[1, 3, 299, 299], 0 to 255."""
