"""ResNets for CIFAR (He et al. 2015), with parameter-free shortcuts."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from lightning_compress.models.networks.common import init_he_, own_arguments


class CifarBlock(nn.Module):
    """Residual block of two 3x3 convolutions with a shortcut without parameters (He et al. 2015, option A).

    Where the width changes, the shortcut takes every second pixel and pads ``width // 4`` zero channels on each side.

    Args:
        in_chans: Number of input channels.
        width: Number of output channels; if it is twice ``in_chans``, the block halves the resolution.
    """

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.widens = in_chans != width
        self.pad = width // 4
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride=2 if self.widens else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_chans, H, W)`` to ``(N, width, H', W')``."""
        shortcut = x
        # Option A: zero channels instead of a 1x1 convolution, so that the shortcut has no parameters.
        if self.widens:
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)


class CifarResNet(nn.Module):
    """Residual network of 6n+2 layers for 32x32 images (He et al. 2015, arXiv:1512.03385, section 4.2).

    Args:
        depth: Number of weight layers, ``6n + 2``.
        num_classes: Number of classes.
        in_chans: Number of channels of the images.

    Raises:
        ValueError: If ``depth`` is not of the form ``6n + 2``.

    >>> sum(p.numel() for p in CifarResNet(20).parameters())
    269722
    """

    def __init__(self, depth: int, *, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth} must be 6n + 2, such as 20 or 56.")
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU(inplace=True)
        num_blocks = (depth - 2) // 6
        self.layer1 = _stage(16, 16, num_blocks)
        self.layer2 = _stage(16, 32, num_blocks)
        self.layer3 = _stage(32, 64, num_blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        init_he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)`` to logits ``(N, num_classes)``."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build ResNet-20 for CIFAR, 0.27 M parameters; takes ``num_classes`` and ``in_chans``."""
    return CifarResNet(20, **own_arguments("resnet20_cifar", pretrained, kwargs))


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build ResNet-56 for CIFAR, 0.85 M parameters; takes ``num_classes`` and ``in_chans``."""
    return CifarResNet(56, **own_arguments("resnet56_cifar", pretrained, kwargs))


def _stage(in_chans: int, width: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(CifarBlock(in_chans if i == 0 else width, width) for i in range(num_blocks)))
