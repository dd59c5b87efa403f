"""Small anchor-free detector with C2f blocks in its backbone and neck, as in YOLOv8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNormSiLU(nn.Sequential):
    """Convolution without a bias, batch norm and SiLU.

    Args:
        in_chans: Number of input channels.
        out_chans: Number of output channels.
        kernel_size: Odd kernel size; the padding keeps the resolution.
        stride: Stride.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(in_chans, out_chans, kernel_size, stride, kernel_size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out_chans), nn.SiLU(inplace=True))


class C2f(nn.Module):
    """Cross-stage block: half of the channels pass through bottlenecks, and the result of each one is concatenated.

    Args:
        in_chans: Number of input channels.
        out_chans: Number of output channels, even.
        num_blocks: Number of bottlenecks of two 3x3 convolutions.
        residual: Add the input of a bottleneck to its output.

    >>> C2f(8, 16)(torch.zeros(1, 8, 4, 4)).shape
    torch.Size([1, 16, 4, 4])
    """

    def __init__(self, in_chans: int, out_chans: int, *, num_blocks: int = 1, residual: bool = True) -> None:
        super().__init__()
        half = out_chans // 2
        self.residual = residual
        self.split = ConvNormSiLU(in_chans, 2 * half, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvNormSiLU(half, half), ConvNormSiLU(half, half)) for _ in range(num_blocks)
        )
        self.join = ConvNormSiLU((2 + num_blocks) * half, out_chans, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_chans, H, W)`` to ``(N, out_chans, H, W)``."""
        parts = [*self.split(x).chunk(2, 1)]
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]) if self.residual else block(parts[-1]))
        return self.join(torch.cat(parts, 1))


class C2fDetector(nn.Module):
    """Anchor-free detector of two feature maps, with strides 8 and 16.

    The backbone halves the resolution four times; the neck passes the last map up and down again (a path aggregation
    network), with a :class:`C2f` block after each concatenation; each map has a 1x1 convolution for classes and one for
    boxes. Decoding of boxes and non-maximum suppression are not part of the network, hence not of an exported file.

    Args:
        num_classes: Number of classes, without the background.
        width: Number of channels of the first layer; that of the last is eight times as many.
        in_chans: Number of channels of the images.

    >>> outputs = C2fDetector(2, width=4)(torch.zeros(1, 3, 64, 64))
    >>> {name: tuple(output.shape) for name, output in outputs.items()}
    {'logits': (1, 80, 3), 'boxes': (1, 80, 4)}
    """

    strides = (8, 16)

    def __init__(self, num_classes: int, *, width: int = 16, in_chans: int = 3) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(
            ConvNormSiLU(in_chans, w, stride=2), ConvNormSiLU(w, 2 * w, stride=2), C2f(2 * w, 2 * w)
        )
        self.stage3 = nn.Sequential(ConvNormSiLU(2 * w, 4 * w, stride=2), C2f(4 * w, 4 * w))
        self.stage4 = nn.Sequential(ConvNormSiLU(4 * w, 8 * w, stride=2), C2f(8 * w, 8 * w))
        self.top_down = C2f(12 * w, 4 * w, residual=False)
        self.down = ConvNormSiLU(4 * w, 4 * w, stride=2)
        self.bottom_up = C2f(12 * w, 8 * w, residual=False)
        self.class_heads = nn.ModuleList(nn.Conv2d(chans, num_classes + 1, 1) for chans in (4 * w, 8 * w))
        self.box_heads = nn.ModuleList(nn.Conv2d(chans, 4, 1) for chans in (4 * w, 8 * w))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images ``(N, in_chans, H, W)`` to predictions of L cells, row by row, those of stride 8 first.

        Height and width are multiples of 16.

        Returns:
            ``logits`` ``(N, L, num_classes + 1)``, of which class 0 is the background, and ``boxes`` ``(N, L, 4)``, the
            distances from the center of a cell to the left, top, right and bottom side, before a softplus, in strides.
        """
        fine = self.stage3(self.stem(images))
        coarse = self.stage4(fine)
        fine = self.top_down(torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], 1))
        coarse = self.bottom_up(torch.cat([self.down(fine), coarse], 1))
        maps = (fine, coarse)
        logits, boxes = (
            torch.cat([head(x).flatten(2) for head, x in zip(heads, maps, strict=True)], 2).transpose(1, 2)
            for heads in (self.class_heads, self.box_heads)
        )
        return {"logits": logits, "boxes": boxes}
