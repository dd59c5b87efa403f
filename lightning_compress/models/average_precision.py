"""Mean average precision of a detector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import box_iou

from lightning_compress.models.cell_targets import Detections


class AveragePrecision(Metric):
    """Area under the interpolated curve of precision over recall, averaged over the classes with objects, in [0, 1].

    A detection is right if its intersection over union with an object of its class, which no detection with a higher
    score has taken, is at least ``overlap``. Everingham et al. 2015, The PASCAL Visual Object Classes Challenge.

    Args:
        num_classes: Number of classes.
        overlap: Smallest intersection over union of a detection that counts.

    >>> metric, box = AveragePrecision(2), torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    >>> metric.update(Detections(box, torch.tensor([0.9]), torch.tensor([1])), box, torch.tensor([1]))
    >>> metric.compute().item()
    1.0
    """

    full_state_update = False
    scores: list[Tensor]
    classes: list[Tensor]
    is_right: list[Tensor]
    num_objects: Tensor

    def __init__(self, num_classes: int, *, overlap: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.overlap = overlap
        for name in ("scores", "classes", "is_right"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("num_objects", default=torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, detections: Detections, boxes: Tensor, classes: Tensor) -> None:
        """Count the detections of one image.

        Args:
            detections: The detections.
            boxes: Corners ``(M, 4)`` of the objects.
            classes: Their classes ``(M,)``.
        """
        self.num_objects += classes.bincount(minlength=len(self.num_objects))
        overlaps = box_iou(detections.boxes.double(), boxes.double())
        overlaps = overlaps * (detections.classes[:, None] == classes)
        is_right = torch.zeros(len(overlaps), dtype=torch.bool, device=overlaps.device)
        for i in detections.scores.argsort(descending=True) if len(boxes) else []:
            best, index = overlaps[i].max(0)
            if best >= self.overlap:
                is_right[i] = True
                overlaps[:, index] = 0  # taken
        self.scores.append(detections.scores)
        self.classes.append(detections.classes)
        self.is_right.append(is_right)

    def compute(self) -> Tensor:
        """Return the mean average precision; 0 if there are no objects."""
        if not self.scores:
            return self.num_objects.new_zeros(())
        scores, classes, is_right = (dim_zero_cat(each) for each in (self.scores, self.classes, self.is_right))
        order = scores.argsort(descending=True)
        present = self.num_objects.nonzero().flatten().tolist()
        values = [self._area(is_right[order][classes[order] == c], self.num_objects[c]) for c in present]
        return torch.stack(values).mean() if values else self.num_objects.new_zeros(())

    def _area(self, is_right: Tensor, num_objects: Tensor) -> Tensor:
        num_right = is_right.cumsum(0)
        precision = num_right / torch.arange(1, len(is_right) + 1, device=is_right.device)
        # At each recall, the precision is the best of this one and all larger ones.
        precision = precision.flip(0).cummax(0).values.flip(0) if len(precision) else precision
        return (precision * is_right).sum() / num_objects
