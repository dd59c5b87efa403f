"""Object detectors: backbones with feature pyramids, and the heads on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.subject import Example, pink_noise


class ConvSiLU(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inside: int, outside: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside), nn.SiLU(True)
        )


class Bottleneck(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = ConvSiLU(width, width, 3), ConvSiLU(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x)) if self.shortcut else self.second(self.first(x))


class C2f(nn.Module):
    """Cross-stage block in YOLOv8's manner: a split, a chain of bottlenecks, a concatenation of all of them."""

    def __init__(self, inside: int, outside: int, depth: int = 1, *, shortcut: bool = False) -> None:
        super().__init__()
        self.half = outside // 2
        self.before = ConvSiLU(inside, 2 * self.half)
        self.after = ConvSiLU((2 + depth) * self.half, outside)
        self.blocks = nn.ModuleList(Bottleneck(self.half, shortcut=shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.before(x).split((self.half, self.half), 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        return self.after(torch.cat(parts, 1))


class PooledPyramid(nn.Module):
    """Spatial pyramid of max pools with the same pool three times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = ConvSiLU(width, width // 2), ConvSiLU(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y = self.pool(x)
        z = self.pool(y)
        return self.after(torch.cat((x, y, z, self.pool(z)), 1))


class BoxHead(nn.Module):
    """Boxes as expectations over distances, and class logits, for each cell of several maps.

    Args:
        widths: Channels of the maps.
        num_classes: Number of classes.
        num_bins: Number of distances of each side of a box.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int = 3, num_bins: int = 8) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.boxes = nn.ModuleList(
            nn.Sequential(ConvSiLU(width, 16, 3), nn.Conv2d(16, 4 * num_bins, 1)) for width in widths
        )
        self.classes = nn.ModuleList(
            nn.Sequential(ConvSiLU(width, 16, 3), nn.Conv2d(16, num_classes, 1)) for width in widths
        )
        self.register_buffer("distances", torch.arange(float(num_bins)).view(1, 1, num_bins, 1), persistent=False)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        boxes = torch.cat([head(x).flatten(2) for head, x in zip(self.boxes, maps, strict=True)], 2)
        logits = torch.cat([head(x).flatten(2) for head, x in zip(self.classes, maps, strict=True)], 2)
        bins = boxes.view(boxes.shape[0], 4, self.num_bins, -1).softmax(2)
        left_top, right_bottom = (bins * self.distances).sum(2).chunk(2, 1)
        centers = torch.cat([self._centers(x) for x in maps], 1)
        corners = torch.cat((centers - left_top, centers + right_bottom), 1)
        return corners, logits.sigmoid()

    @staticmethod
    def _centers(x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        return torch.stack((columns, rows)).flatten(1).float() + 0.5


class Yolo(nn.Module):
    """Backbone of C2f blocks, a pyramid down and up again, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvSiLU(3, 8, 3, 2), ConvSiLU(8, 16, 3, 2))
        self.fine = nn.Sequential(ConvSiLU(16, 32, 3, 2), C2f(32, 32, 1, shortcut=True))
        self.coarse = nn.Sequential(ConvSiLU(32, 48, 3, 2), C2f(48, 48, 1, shortcut=True), PooledPyramid(48))
        self.up = nn.Upsample(scale_factor=2)
        self.merge_fine, self.down_fine, self.merge_coarse = C2f(80, 32), ConvSiLU(32, 32, 3, 2), C2f(80, 48)
        self.head = BoxHead((32, 48))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        fine = self.merge_fine(torch.cat([self.up(coarse), fine], 1))
        return self.head([fine, self.merge_coarse(torch.cat([self.down_fine(fine), coarse], 1))])


class WeightedFusion(nn.Module):
    """Weighted mean of maps with learned weights, normalized by their sum, as in EfficientDet."""

    def __init__(self, num_maps: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(num_maps))
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise, self.norm = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, maps: list[Tensor]) -> Tensor:
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        fused = torch.stack(maps, dim=-1) * weights
        return self.norm(self.pointwise(self.depthwise(F.silu(fused.sum(dim=-1)))))


class WeightedPyramid(nn.Module):
    """Bidirectional pyramid of weighted fusions, and a head that is shared by all maps with norms of their own."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = ConvSiLU(3, width, 3, 2)
        self.stages = nn.ModuleList(ConvSiLU(width, width, 3, 2) for _ in range(3))
        self.down = nn.ModuleList(WeightedFusion(2, width) for _ in range(2))
        self.up = nn.ModuleList(WeightedFusion(n, width) for n in (3, 2))
        self.head = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.head_norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.logits = nn.Conv2d(width, 6, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stages[0](self.stem(x))
        middle = self.stages[1](fine)
        coarse = self.stages[2](middle)
        inner = self.down[0]([middle, F.interpolate(coarse, size=middle.shape[-2:])])
        fine = self.down[1]([fine, F.interpolate(inner, size=fine.shape[-2:])])
        middle = self.up[0]([middle, inner, F.max_pool2d(fine, 3, 2, 1)])
        coarse = self.up[1]([coarse, F.max_pool2d(middle, 3, 2, 1)])
        maps = zip(self.head_norms, (fine, middle, coarse), strict=True)
        return [self.logits(F.silu(norm(self.head(x)))) for norm, x in maps]


def images(size: int = 64, num: int = 4) -> Tensor:
    return pink_noise(num, 3, size, size)


def yolo() -> Example:
    """One-stage detector with C2f blocks, pooled pyramid, two-way feature pyramid, distribution of distances."""
    return Yolo(), images()


def weighted_pyramid() -> Example:
    """Two-way pyramid with normalized fusion weights in EfficientDet's manner, and a shared head."""
    return WeightedPyramid(), images()


def pyramid(width: int = 32) -> nn.Module:
    """ResNet of torchvision with frozen norms and a feature pyramid of two maps."""
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.ops import FrozenBatchNorm2d

    network = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d)
    layers = {"layer3": "0", "layer4": "1"}
    return BackboneWithFPN(network, layers, [256, 512], width)


def retinanet() -> Example:
    """torchvision: ResNet with frozen norms, feature pyramid, RetinaNet's head on its maps."""
    from torchvision.models.detection.retinanet import RetinaNetHead

    class RetinaNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = pyramid(), RetinaNetHead(32, 2, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return self.head(list(self.backbone(x).values()))

    return RetinaNet(), images()


def roi_heads() -> Example:
    """torchvision: ResNet with frozen norms, feature pyramid, boxes aligned from its maps, Faster R-CNN's head."""
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = pyramid()
            self.align = MultiScaleRoIAlign(["0", "1"], 3, 2)
            self.head, self.predictor = TwoMLPHead(32 * 9, 32), FastRCNNPredictor(32, 3)

        def forward(self, x: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
            pooled = self.align(self.backbone(x), list(boxes), [(64, 64)] * len(boxes))
            return self.predictor(self.head(pooled))

    corners = torch.rand(2, 4, 2) * 24
    return Regions(), (images(num=2), torch.cat([corners, corners + 4 + torch.rand(2, 4, 2) * 30], 2))


def detr() -> Example:
    """transformers: DETR with a frozen ResNet."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=2,
        decoder_attention_heads=2, num_queries=6, num_labels=3,
    )  # fmt: skip
    network = DetrForObjectDetection(config)
    for name, parameter in network.named_parameters():
        # The decoder begins with zeros: with biases of zero as well, its first values would be nothing but zeros.
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return network, images(num=2)
