"""Logit losses between the output of a student and those of its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_compress.distillation.batch_formats import Annotations
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.logit_formats import Positions, extract_logits, find_positions, pair_heads
from lightning_compress.distillation.logits import LogitMSE
from lightning_compress.distillation.loss import Combine, LogitLoss


class Head(NamedTuple):
    """Logits of one head, one row for each position.

    Attributes:
        student: ``(M, C)``.
        teachers: ``(M, C)`` of each teacher.
        positions: Positions of the rows, with their labels.
    """

    student: Tensor
    teachers: list[Tensor]
    positions: Positions


class LogitComparison:
    """Logit losses of a student, computed at each of the positions of its logits and averaged over its heads.

    Args:
        losses: Losses by name.
        combine: Function from the logits ``(M, C)`` of several teachers, and labels, to their combined logits.
        class_dim: Dimension of the classes, as of :func:`find_positions`.

    Attributes:
        losses: Losses by name.
        class_dim: Dimension of the classes.
    """

    def __init__(self, losses: Mapping[str, LogitLoss], combine: Combine, class_dim: int | None) -> None:
        self.losses = losses
        self.class_dim, self._combine = class_dim, combine
        self._has_checked = False

    def __call__(
        self,
        output: Any,
        outputs: Sequence[Any],
        teachers: Sequence[FrozenNetwork],
        annotations: Annotations,
        weights: Mapping[str, float],
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch, and pass it on to teachers that are trained.

        Args:
            output: Output of the student.
            outputs: Output of each teacher.
            teachers: The teachers.
            annotations: Labels and padding mask.
            weights: Weights of the losses of teachers that are trained, by the loss's name; 1 by default.

        Returns:
            Scalar losses by name, without their weights.

        Raises:
            ValueError: If there are no logits, or their shapes differ.
        """
        heads = self._heads(output, outputs, annotations)
        if not self._has_checked:
            self._has_checked = True  # only once: reading values synchronizes with the device
            self._check_targets(heads)
        values = {
            name: torch.stack([self._value(loss, head) for head in heads]).mean() for name, loss in self.losses.items()
        }
        weighted = [(weights.get(name, 1.0), loss) for name, loss in self.losses.items()]
        for teacher in teachers:
            teacher.accumulate([(head.student, head.positions) for head in heads], weighted)
        return values

    def _heads(self, output: Any, outputs: Sequence[Any], annotations: Annotations) -> list[Head]:
        pairs = pair_heads(extract_logits(output, "student"), [extract_logits(each, "teacher") for each in outputs])
        heads = []
        for index, (student, teachers) in enumerate(pairs):
            at = find_positions(student, annotations, class_dim=self.class_dim, head=index, num_heads=len(pairs))
            heads.append(Head(at.rows(student), [at.rows(each) for each in teachers], at))
        return heads

    def _check_targets(self, heads: Sequence[Head]) -> None:
        compares = [type(loss).__name__ for loss in self.losses.values() if not isinstance(loss, LogitMSE)]
        if compares and not all(_are_classes(head.positions.labels) for head in heads):
            rank_zero_warn(
                f"The targets of the student are not probabilities of classes, but {compares[0]} compares these: use "
                "lc.LogitMSE() for a regression or independent binary labels."
            )

    def _value(self, loss: LogitLoss, head: Head) -> Tensor:
        if not len(head.student):
            return head.student.float().sum()  # zero, with a graph: every position is padding or ignored
        labels = head.positions.labels
        return loss(head.student, loss.target(head.teachers, labels, self._combine), labels)


def _are_classes(labels: Tensor | None) -> bool:
    """Return False for targets with the shape of the logits that are no probabilities."""
    if labels is None or not labels.is_floating_point():
        return True
    return bool((labels >= 0).all() and ((labels.sum(1) - 1).abs() < 0.01).all())
