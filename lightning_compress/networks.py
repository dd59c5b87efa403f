"""Small networks of the compression literature that timm lacks; importing this module registers them there."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn


class CifarBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (He et al. 2015, option A).

    Where the block changes the width, the shortcut takes every second pixel and pads zero channels, a quarter of the
    new width on each side.

    Args:
        in_chans: Channels of the input.
        width: Channels of the output; twice the input's where the block halves the resolution.
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
        """Maps ``(N, in_chans, H, W)`` to ``(N, width, H', W')``."""
        shortcut = x
        if self.widens:
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)


class CifarResNet(nn.Module):
    """The 6n+2 layer residual network for 32x32 images (He et al. 2015, arXiv:1512.03385, section 4.2).

    Args:
        depth: Number of weight layers, ``6n + 2``.
        num_classes: Width of the last layer.
        in_chans: Channels of the images.

    Raises:
        ValueError: If ``depth`` is not of the form ``6n + 2``.
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
        _init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, H, W)`` to logits ``(N, num_classes)``."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


class Conv4(nn.Module):
    """Conv-4 of the lottery-ticket paper: four convolutions in two pooled pairs, then three linear layers.

    Frankle and Carbin 2019 (arXiv:1803.03635), figure 2: 64, 64, pool, 128, 128, pool, 256, 256, classes.

    Args:
        num_classes: Width of the last layer.
        in_chans: Channels of the images.
        img_size: Height and width of the images, at least 4.
    """

    def __init__(self, *, num_classes: int = 10, in_chans: int = 3, img_size: int = 32) -> None:
        super().__init__()
        if img_size < 4:
            raise ValueError(f"img_size={img_size} must be at least 4: the network halves it twice.")
        self.features = nn.Sequential(*_conv_pair(in_chans, 64), *_conv_pair(64, 128))
        side = img_size // 4
        self.classifier = nn.Sequential(
            nn.Linear(128 * side * side, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, num_classes)
        )
        _init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, img_size, img_size)`` to logits ``(N, num_classes)``."""
        return self.classifier(self.features(x).flatten(1))


class LeNet300(nn.Module):
    """LeNet-300-100, a multilayer perceptron (LeCun et al. 1998) of 266,610 parameters on 28x28 images.

    Args:
        num_classes: Width of the last layer.
        in_chans: Channels of the images.
        img_size: Height and width of the images.
    """

    def __init__(self, *, num_classes: int = 10, in_chans: int = 1, img_size: int = 28) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_chans * img_size * img_size, 300)
        self.act1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.act2 = nn.ReLU()
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, img_size, img_size)`` to logits ``(N, num_classes)``."""
        x = self.act1(self.fc1(x.flatten(1)))
        return self.fc3(self.act2(self.fc2(x)))


class LeNet5(nn.Module):
    """LeNet-5 as pruning papers have it since Caffe: 20 and 50 maps, 500 units; 431,080 parameters on 28x28 images.

    Han et al. 2015 (arXiv:1506.02626), table 4.

    Args:
        num_classes: Width of the last layer.
        in_chans: Channels of the images, which are 28x28.
    """

    def __init__(self, *, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(800, 500)
        self.act1 = nn.ReLU()
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, 28, 28)`` to logits ``(N, num_classes)``."""
        x = self.pool2(self.conv2(self.pool1(self.conv1(x))))
        return self.fc2(self.act1(self.fc1(x.flatten(1))))


def _stage(in_chans: int, width: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(CifarBlock(in_chans if i == 0 else width, width) for i in range(num_blocks)))


def _conv_pair(in_chans: int, width: int) -> list[nn.Module]:
    first, second = nn.Conv2d(in_chans, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]


def _init_he(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Arguments that timm hands to every factory and that mean nothing to these networks.
_TIMM_EXTRAS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for CIFAR, 0.27 M parameters; takes ``num_classes`` and ``in_chans``."""
    return CifarResNet(20, **_own("resnet20_cifar", pretrained, kwargs))


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for CIFAR, 0.85 M parameters; takes ``num_classes`` and ``in_chans``."""
    return CifarResNet(56, **_own("resnet56_cifar", pretrained, kwargs))


@register_model
def conv4(pretrained: bool = False, **kwargs: Any) -> Conv4:
    """Conv-4 of the lottery-ticket paper; takes ``num_classes``, ``in_chans`` and ``img_size``."""
    return Conv4(**_own("conv4", pretrained, kwargs))


@register_model
def lenet300_100(pretrained: bool = False, **kwargs: Any) -> LeNet300:
    """LeNet-300-100; takes ``num_classes``, ``in_chans`` and ``img_size``."""
    return LeNet300(**_own("lenet300_100", pretrained, kwargs))


@register_model
def lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """LeNet-5; takes ``num_classes`` and ``in_chans``."""
    return LeNet5(**_own("lenet5", pretrained, kwargs))


def _own(name: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    if pretrained:
        raise ValueError(f"{name} has no pretrained weights: load a file with checkpoint=... instead.")
    return {key: value for key, value in kwargs.items() if key not in _TIMM_EXTRAS}
