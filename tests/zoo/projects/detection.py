"""Detection with torchvision: lists of images and targets, losses in training and boxes in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _mobilenet_extractor

from tests.zoo.projects.project import Project


def network() -> RetinaNet:
    backbone = _mobilenet_extractor(mobilenet_v3_small(weights=None), fpn=True, trainable_layers=6)
    backbone.out_channels = 256
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)
    return RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=64)


class Detector(LightningModule):
    def __init__(self, lr: float = 1e-4) -> None:
        super().__init__()
        self.lr = lr
        self.model = network()

    def forward(self, images: list[Tensor]) -> Any:
        self.model.eval()
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        images, targets = batch
        targets = [dict(t.items()) for t in targets]
        losses = self.model(list(images), targets)
        return {"loss": sum(losses.values()), "log": losses}  # type: ignore[dict-item]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=0.005)


def sample(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    corner = torch.tensor([4.0, 4.0]) + seed
    return torch.rand(3, 64, 64), {
        "boxes": torch.cat([corner, corner + 24])[None],
        "labels": torch.tensor([1 + seed % 2]),
    }


def data() -> DataLoader:
    return DataLoader([sample(i) for i in range(4)], batch_size=2, collate_fn=lambda batch: tuple(zip(*batch)))  # type: ignore[arg-type]  # noqa: B905


PROJECT = Project(Detector, data, deployed="model", inputs=lambda: ([torch.rand(3, 64, 64)],))
