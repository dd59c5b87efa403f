"""Evaluation of all distillation losses of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.distillation.batch_formats import extract_logits
from lightning_compress.distillation.feature_hooks import FeatureHooks, ModuleCall, feature_tensor
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.loss import FeatureLoss, LogitLoss

Combine = Callable[[Sequence[Tensor], Tensor | None], Tensor]


class Objective(nn.Module):
    """Losses between a student and its teachers, with the adapters of the feature losses.

    Adapters are built in the first forward pass, from the shapes of the features.

    Args:
        losses: Losses by name.
        combine: Function from the logits ``(N, C)`` of several teachers, and labels, to their combined logits.

    Attributes:
        logit_losses: The logit losses by name.
        feature_losses: The feature losses by name.
        adapters: Adapters by ``"<loss>_<index of the pair>"``.
        shapes: Shapes of the features of student and teacher that each adapter was built for.

    Raises:
        ValueError: For a name that cannot be part of a parameter's name, or a value that is not a loss.
    """

    def __init__(self, losses: Mapping[str, LogitLoss | FeatureLoss], combine: Combine) -> None:
        super().__init__()
        for name, loss in losses.items():
            if not name or "." in name:
                raise ValueError(f"losses: {name!r} must be a name without dots.")
            if not isinstance(loss, (LogitLoss, FeatureLoss)):
                raise ValueError(f"losses: {name!r} must be a loss such as lc.KD(), not {type(loss).__name__}.")
        self.logit_losses = {name: loss for name, loss in losses.items() if isinstance(loss, LogitLoss)}
        self.feature_losses = {name: loss for name, loss in losses.items() if isinstance(loss, FeatureLoss)}
        self.adapters = nn.ModuleDict()
        self.shapes: dict[str, list[list[int]]] = {}
        self._combine = combine

    @property
    def layers(self) -> tuple[list[str], list[str]]:
        """Names of the modules that feature losses compare, of the student and of the first teacher."""
        pairs = [pair for loss in self.feature_losses.values() for pair in loss.layers]
        return list(dict.fromkeys(s for s, _ in pairs)), list(dict.fromkeys(t for _, t in pairs))

    def forward(
        self,
        call: ModuleCall,
        output: Any,
        features: FeatureHooks,
        teachers: Sequence[FrozenNetwork],
        labels: Tensor | None,
        keys: Tensor | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """Run the teachers on the student's inputs and compute all losses.

        Args:
            call: Forward pass of the student, with its inputs.
            output: Output of the student that contains its logits.
            features: Recorded features of the student.
            teachers: The teachers.
            labels: Classes ``(N,)``, probabilities ``(N, C)``, or ``None``.
            keys: Keys ``(N,)`` of the samples in the caches of the teachers, or ``None``.
            weights: Weights of the losses of teachers that are trained, by the loss's name; 1 by default.

        Returns:
            Scalar losses by name, without their weights.

        Raises:
            ValueError: If logit losses get logits of different shapes, or a feature cannot be read.
        """
        with ExitStack() as recording:
            for teacher in teachers:
                recording.enter_context(teacher.features.record())
            outputs = [teacher.forward(call.args, call.kwargs, keys) for teacher in teachers]
            values: dict[str, Tensor] = {}
            if self.logit_losses:
                values |= self._compare_logits(output, outputs, teachers, labels, weights or {})
            for name, loss in self.feature_losses.items():
                values[name] = self._compare_features(name, loss, features, teachers[0].features, labels)
        return values

    def adopt_adapters(self, other: Objective) -> None:
        """Take over the adapters of another objective with the same losses; both share them afterwards."""
        self.adapters, self.shapes = other.adapters, other.shapes

    def build_adapters(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Build adapters before the first forward pass, to load their parameters.

        Args:
            shapes: Attribute ``shapes`` of an objective with the same losses.
        """
        for key, (student, teacher) in shapes.items():
            loss = self.feature_losses[key.rpartition("_")[0]]
            self._get_adapter(key, loss, torch.Size(student), torch.Size(teacher))

    def _compare_logits(
        self,
        output: Any,
        outputs: Sequence[Any],
        teachers: Sequence[FrozenNetwork],
        labels: Tensor | None,
        weights: Mapping[str, float],
    ) -> dict[str, Tensor]:
        student = extract_logits(output, "student")
        combined = self._combine([_check_logits(extract_logits(each, "teacher"), student) for each in outputs], labels)
        values = {name: loss(student, combined, labels) for name, loss in self.logit_losses.items()}
        weighted = [(weights.get(name, 1.0), loss) for name, loss in self.logit_losses.items()]
        for teacher in teachers:
            teacher.accumulate(student, labels, weighted)
        return values

    def _compare_features(
        self, name: str, loss: FeatureLoss, student: FeatureHooks, teacher: FeatureHooks, labels: Tensor | None
    ) -> Tensor:
        pairs = [
            self._adapt(f"{name}_{index}", loss, feature_tensor(student[s], s), feature_tensor(teacher[t], t))
            for index, (s, t) in enumerate(loss.layers)
        ]
        return torch.stack([loss(s, t, labels) for s, t in pairs]).mean()

    def _adapt(self, key: str, loss: FeatureLoss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        adapter = self._get_adapter(key, loss, student.shape, teacher.shape)
        # A teacher with its own precision: adapters have the dtype of the student.
        pair: tuple[Tensor, Tensor] = adapter(student, teacher.to(student.dtype))
        return pair

    def _get_adapter(self, key: str, loss: FeatureLoss, student: torch.Size, teacher: torch.Size) -> nn.Module:
        if key not in self.adapters:
            self.adapters[key] = loss.adapter(student, teacher)
            self.shapes[key] = [list(student), list(teacher)]
        return self.adapters[key]


def _check_logits(teacher: Tensor, student: Tensor) -> Tensor:
    """Check that logits have one shape, and return the teacher's on the student's device."""
    if teacher.shape != student.shape:
        raise ValueError(
            f"The student returns logits of shape {tuple(student.shape)} and the teacher of shape "
            f"{tuple(teacher.shape)}: logit losses need the same classes; feature losses do not."
        )
    return teacher.to(student.device)
