"""LeNet-300-100 and LeNet-5, as used in the pruning literature."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from lightning_compress.models.networks.common import own_arguments


class LeNet300(nn.Module):
    """LeNet-300-100, a multilayer perceptron with 266,610 parameters on 28x28 images. LeCun et al. 1998.

    Args:
        num_classes: Number of classes.
        in_chans: Number of channels of the images.
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
        """Map images ``(N, in_chans, img_size, img_size)`` to logits ``(N, num_classes)``."""
        x = self.act1(self.fc1(x.flatten(1)))
        return self.fc3(self.act2(self.fc2(x)))


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's version: 20 and 50 feature maps, 500 hidden units, 431,080 parameters.

    The version of the pruning literature, such as Han et al. 2015 (arXiv:1506.02626), table 4.

    Args:
        num_classes: Number of classes.
        in_chans: Number of channels of the 28x28 images.
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
        """Map images ``(N, in_chans, 28, 28)`` to logits ``(N, num_classes)``."""
        x = self.pool2(self.conv2(self.pool1(self.conv1(x))))
        return self.fc2(self.act1(self.fc1(x.flatten(1))))


@register_model
def lenet300_100(pretrained: bool = False, **kwargs: Any) -> LeNet300:
    """Build :class:`LeNet300`; takes ``num_classes``, ``in_chans`` and ``img_size``."""
    return LeNet300(**own_arguments("lenet300_100", pretrained, kwargs))


@register_model
def lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """Build :class:`LeNet5`; takes ``num_classes`` and ``in_chans``."""
    return LeNet5(**own_arguments("lenet5", pretrained, kwargs))
