"""LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1, through torchmetrics, which ships the linear heads.

The trunk (AlexNet, VGG-16 or SqueezeNet 1.1 of torchvision, trained on ImageNet) is read from a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS

from cmma.artifacts.tensors import read_tensors
from cmma.errors import DataError

Trunk = Literal["alex", "vgg", "squeeze"]


def load_lpips(trunk: Trunk, weights: Path) -> nn.Module:
    """The distance with torchvision's weights of its trunk.

    Args:
        trunk: alex, vgg or squeeze.
        weights: state dictionary of torchvision's `alexnet`, `vgg16` or `squeezenet1_1`.

    Raises:
        DataError: a file that cannot be read or belongs to another network.
    """
    distance = _LPIPS(pretrained=True, net=trunk, pnet_rand=True)
    given = read_tensors(weights, DataError)
    wanted = {name: f"features.{'.'.join(name.split('.')[2 if trunk == 'squeeze' else 1:])}"
              for name in distance.net.state_dict()}
    try:
        distance.net.load_state_dict({name: given[theirs] for name, theirs in wanted.items()})
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{weights}: not the weights of torchvision's trunk for LPIPS ({trunk})") from error
    return distance


@torch.inference_mode()
def lpips(distance: nn.Module, first: Image.Image, second: Image.Image) -> float:
    """LPIPS of two RGB images of one size. Raises DataError where sizes differ."""
    if first.size != second.size:
        raise DataError(f"sizes {first.size} and {second.size} differ")
    device = next(distance.parameters()).device
    return float(distance(_pixels(first, device), _pixels(second, device)))


def _pixels(image: Image.Image, device: torch.device) -> torch.Tensor:
    pixels_HWC = torch.from_numpy(np.array(image.convert("RGB"), np.float32))
    return (pixels_HWC.permute(2, 0, 1)[None] / 127.5 - 1).to(device)
