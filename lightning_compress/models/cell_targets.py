"""Cells of an anchor-free detector: the objects that they are trained to find, and the boxes that they predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

BACKGROUND = 0
_LARGEST_SIDE = 3  # of the boxes of a feature map, in strides; the coarsest map takes all larger ones
_NO_OBJECT = -100  # class of padding


@dataclass(frozen=True)
class Cells:
    """Cells of feature maps.

    Attributes:
        centers: ``(L, 2)``, x and y in pixels of the image.
        strides: ``(L,)``, in pixels.
    """

    centers: Tensor
    strides: Tensor

    @classmethod
    def of(cls, images: Tensor, strides: Sequence[int]) -> Cells:
        """Return the cells of images ``(N, C, H, W)``, row by row, map after map.

        >>> Cells.of(torch.zeros(1, 3, 16, 32), (16,)).centers.tolist()
        [[8.0, 8.0], [24.0, 8.0]]
        """
        centers = [_centers(*(-(-size // stride) for size in images.shape[-2:])) * stride for stride in strides]
        widths = torch.cat([torch.full((len(each),), float(s)) for each, s in zip(centers, strides, strict=True)])
        return cls(torch.cat(centers).to(images.device), widths.to(images.device))

    def decode(self, distances: Tensor) -> Tensor:
        """Map distances ``(N, L, 4)`` before the softplus, in strides, to boxes ``(N, L, 4)`` of corners in pixels."""
        before, after = (F.softplus(distances.float()) * self.strides[:, None]).split(2, -1)
        return torch.cat([self.centers - before, self.centers + after], -1)

    def assign(self, boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class and the box that each cell is to predict.

        An object belongs to the cells around its center, at most one stride away and inside of its box, of the finest
        map with at most three strides in its longer side; a cell of several objects takes the smallest. After FCOS,
        Tian et al. 2019 (arXiv:1904.01355).

        Args:
            boxes: Corners ``(N, M, 4)`` in pixels.
            classes: ``(N, M)``; -100 is padding.

        Returns:
            Labels ``(N, L)``, 0 for the background and the class plus one otherwise, and boxes ``(N, L, 4)``.
        """
        boxes, classes = F.pad(boxes.float(), (0, 0, 0, 1)), F.pad(classes, (0, 1), value=_NO_OBJECT)
        lower, upper = boxes.split(2, -1)
        sides, middles = upper - lower, (lower + upper) / 2
        centers, strides = self.centers[:, None], self.strides[:, None]
        is_inside = ((centers > lower[:, None]) & (centers < upper[:, None])).all(-1)
        is_near = ((centers - middles[:, None]).abs() < strides[..., None]).all(-1)
        scales = self.strides.unique()
        own = scales[torch.bucketize(sides.amax(-1) / _LARGEST_SIDE, scales[:-1])]
        is_own = (own[:, None] == strides) & (classes >= 0)[:, None] & is_inside & is_near
        areas = sides.prod(-1)[:, None].masked_fill(~is_own, torch.inf)
        index = areas.argmin(-1)
        labels = torch.where(is_own.any(-1), classes.gather(1, index) + 1, BACKGROUND)
        return labels, boxes.gather(1, index[..., None].expand(-1, -1, 4))


@dataclass(frozen=True)
class Detections:
    """Objects found in one image.

    Attributes:
        boxes: Corners ``(K, 4)`` in pixels.
        scores: Probabilities ``(K,)``, in descending order.
        classes: ``(K,)``.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def detect(
    logits: Tensor, boxes: Tensor, *, min_score: float = 0.05, max_overlap: float = 0.6, max_number: int = 100
) -> Detections:
    """Return the objects in one image by non-maximum suppression within each class.

    Args:
        logits: ``(L, num_classes + 1)``; class 0 is the background.
        boxes: Corners ``(L, 4)`` in pixels.
        min_score: Smallest probability of an object.
        max_overlap: Largest intersection over union of two objects of a class.
        max_number: Largest number of objects.
    """
    scores, classes = logits.float().softmax(-1)[:, 1:].max(-1)
    found = (scores >= min_score).nonzero().squeeze(1)
    kept = found[batched_nms(boxes[found], scores[found], classes[found], max_overlap)[:max_number]]
    return Detections(boxes[kept], scores[kept], classes[kept])


def _centers(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows], -1).flatten(0, 1) + 0.5
