"""LightningModule that trains an anchor-free detector."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from lightning_compress.models.average_precision import AveragePrecision
from lightning_compress.models.cell_targets import BACKGROUND, Cells, Detections, detect
from lightning_compress.models.checkpoint_loading import CheckedModule
from lightning_compress.models.classification import optimizer_config, sgd

Batch = tuple[Tensor, Tensor, Tensor]


class DetectionModule(CheckedModule):
    """Train an anchor-free detector with the cross-entropy of its cells and the generalized IoU of its boxes.

    Batches are images ``(N, C, H, W)``, classes ``(N, M)`` of their objects, with -100 as padding, and boxes ``(N, M,
    4)``, left, top, right and bottom in pixels. Logs ``train/loss``, ``val/loss``, ``val/ap50``, ``test/loss`` and
    ``test/ap50``, the mean average precision at an intersection over union of 0.5, in [0, 1].

    Args:
        model: Network that maps images to a dict of ``logits`` ``(N, L, num_classes + 1)`` and ``boxes`` ``(N, L, 4)``
            as :class:`~lightning_compress.models.networks.C2fDetector` does.
        num_classes: Number of classes, without the background.
        strides: Strides of the feature maps of the network, in pixels.
        optimizer: Function from parameters to the optimizer.
        lr_scheduler: Function from the optimizer to a scheduler, which is stepped once per epoch. By default a cosine
            schedule to zero over the whole run, stepped once per batch.

    Attributes:
        model: The network.

    >>> import lightning_compress as lc
    >>> from lightning_compress.models.networks import C2fDetector
    >>> module = lc.DetectionModule(C2fDetector(2, width=4), num_classes=2)
    >>> [found] = module.detect(torch.zeros(1, 3, 64, 64))
    >>> found.boxes.shape[1]
    4
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        strides: tuple[int, ...] = (8, 16),
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.model, self.strides = model, strides
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.val_ap50, self.test_ap50 = AveragePrecision(num_classes), AveragePrecision(num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images ``(N, C, H, W)`` to ``logits`` and ``boxes`` of cells."""
        return self.model(images)

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """Return the objects in each of the images ``(N, C, H, W)``."""
        return self._detections(self(images), self._cells(images))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of one batch."""
        images, classes, boxes = batch
        loss = self._loss(self(images), self._cells(images), classes, boxes)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the mean average precision of one batch."""
        self.evaluate(batch, "val", self.val_ap50)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the mean average precision of one batch."""
        self.evaluate(batch, "test", self.test_ap50)

    @torch.compiler.disable  # a metric counts its updates, and each count would trigger a recompilation
    def evaluate(self, batch: Batch, stage: str, metric: AveragePrecision) -> None:
        """Log the loss and the mean average precision of one batch."""
        images, classes, boxes = batch
        outputs, cells = self(images), self._cells(images)
        loss = self._loss(outputs, cells, classes, boxes)
        for index, detections in enumerate(self._detections(outputs, cells)):
            is_object = classes[index] >= 0
            metric.update(detections, boxes[index, is_object], classes[index, is_object])
        self.log(f"{stage}/ap50", metric, batch_size=len(images), prog_bar=True)
        self.log(f"{stage}/loss", loss, batch_size=len(images), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Create the optimizer and its scheduler.

        Raises:
            ValueError: If the cosine schedule is used in a run without a bound.
        """
        return optimizer_config(self, self.optimizer, self.lr_scheduler)

    def _cells(self, images: Tensor) -> Cells:
        return Cells.of(images, self.strides)

    def _detections(self, outputs: dict[str, Tensor], cells: Cells) -> list[Detections]:
        boxes = cells.decode(outputs["boxes"])
        return [detect(*each) for each in zip(outputs["logits"], boxes, strict=True)]

    def _loss(self, outputs: dict[str, Tensor], cells: Cells, classes: Tensor, boxes: Tensor) -> Tensor:
        logits = outputs["logits"].float()
        if logits.shape[1] != len(cells.strides):
            raise ValueError(
                f"The network returns {logits.shape[1]} cells, but strides={self.strides} give {len(cells.strides)}: "
                "set strides to those of its feature maps, and use images whose size is a multiple of them."
            )
        labels, targets = cells.assign(boxes, classes)
        is_object = labels != BACKGROUND
        overlap = generalized_box_iou_loss(cells.decode(outputs["boxes"])[is_object], targets[is_object])
        # Per cell with an object: there are as many of the background as the image is large.
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") + overlap.sum()
        return total / is_object.sum().clamp(min=1)
