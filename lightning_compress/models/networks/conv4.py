"""Conv-4, the small convolutional network of the lottery-ticket paper."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from lightning_compress.models.networks.common import init_he_, own_arguments


class Conv4(nn.Module):
    """Conv-4: two pairs of convolutions, each with a max-pool, and three linear layers.

    Frankle and Carbin 2019 (arXiv:1803.03635), figure 2: widths 64, 64, pool, 128, 128, pool, 256, 256, num_classes.

    Args:
        num_classes: Number of classes.
        in_chans: Number of channels of the images.
        img_size: Height and width of the images, at least 4.

    Raises:
        ValueError: If ``img_size`` is below 4.

    >>> sum(p.numel() for p in Conv4().parameters())
    2425930
    """

    def __init__(self, *, num_classes: int = 10, in_chans: int = 3, img_size: int = 32) -> None:
        super().__init__()
        if img_size < 4:
            raise ValueError(f"img_size={img_size} must be at least 4: two max-pools halve it.")
        self.features = nn.Sequential(*_conv_pair(in_chans, 64), *_conv_pair(64, 128))
        side = img_size // 4
        self.classifier = nn.Sequential(
            nn.Linear(128 * side * side, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, num_classes)
        )
        init_he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, img_size, img_size)`` to logits ``(N, num_classes)``."""
        return self.classifier(self.features(x).flatten(1))


@register_model
def conv4(pretrained: bool = False, **kwargs: Any) -> Conv4:
    """Build :class:`Conv4`; takes ``num_classes``, ``in_chans`` and ``img_size``."""
    return Conv4(**own_arguments("conv4", pretrained, kwargs))


def _conv_pair(in_chans: int, width: int) -> list[nn.Module]:
    first, second = nn.Conv2d(in_chans, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]
