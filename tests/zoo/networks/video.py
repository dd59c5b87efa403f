"""Networks on video clips."""

from __future__ import annotations

from torch import Tensor

from tests.zoo.subject import Example, pink_noise


def clips() -> Tensor:
    return pink_noise(2, 3, 8, 32, 32)


def r3d() -> Example:
    """torchvision: 3-D ResNet with one block in each stage."""
    from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1] * 4, BasicStem, num_classes=10), clips()


def mc3() -> Example:
    """torchvision: 3-D convolutions in the first stage only."""
    from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DNoTemporal, Conv3DSimple, VideoResNet

    convs = [Conv3DSimple, *[Conv3DNoTemporal] * 3]
    return VideoResNet(BasicBlock, convs, [1] * 4, BasicStem, num_classes=10), clips()


def r2plus1d() -> Example:
    """torchvision: convolutions over space, then over time."""
    from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

    return VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [1] * 4, R2Plus1dStem, num_classes=10), clips()


def swin_3d() -> Example:
    """torchvision: Swin transformer with windows in space and time."""
    from torchvision.models.video import SwinTransformer3d

    network = SwinTransformer3d([2, 4, 4], 24, [2, 2], [2, 4], [4, 4, 4], 2.0, num_classes=10)
    return network, clips()
