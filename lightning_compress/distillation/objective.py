"""What a student has to match."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.distillation.batch_formats import logits_of
from lightning_compress.distillation.feature_hooks import FeatureHooks, ModuleCall, feature
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.loss import FeatureLoss, LogitLoss

Combine = Callable[[Sequence[Tensor], Tensor | None], Tensor]


class Objective(nn.Module):
    """Losses between a student and its teachers, and the adapters that bring features to one shape.

    Adapters are made where they are first needed, when shapes are known.

    Args:
        losses: Losses by name.
        combine: Makes one of the logits of several teachers.

    Raises:
        ValueError: For a name that cannot be part of a parameter's name.
    """

    def __init__(self, losses: Mapping[str, LogitLoss | FeatureLoss], combine: Combine) -> None:
        super().__init__()
        for name, loss in losses.items():
            if not name or "." in name:
                raise ValueError(f"losses: {name!r} must be a name without dots.")
            if not isinstance(loss, (LogitLoss, FeatureLoss)):
                raise ValueError(f"losses: {name!r} must be a loss such as lc.KD(), not {type(loss).__name__}.")
        self.of_logits = {name: loss for name, loss in losses.items() if isinstance(loss, LogitLoss)}
        self.of_features = {name: loss for name, loss in losses.items() if isinstance(loss, FeatureLoss)}
        self.adapters = nn.ModuleDict()
        self.shapes: dict[str, list[list[int]]] = {}
        self._combine = combine

    @property
    def layers(self) -> tuple[list[str], list[str]]:
        """Names of the modules whose outputs are wanted, of the student and of the first teacher."""
        pairs = [pair for loss in self.of_features.values() for pair in loss.layers]
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
        """Asks the teachers and compares.

        Args:
            call: The student's forward pass; the teachers are run on its inputs.
            output: What has its logits.
            features: The student's modules.
            teachers: The teachers.
            labels: Classes ``(N,)``, probabilities ``(N, C)``, or nothing.
            keys: Keys ``(N,)`` under which teachers with a cache keep their logits, or nothing.
            weights: Weights of losses for teachers that learn, too; 1 where there is none.

        Returns:
            Every loss, a scalar, not yet weighted.

        Raises:
            ValueError: If student and teachers do not return logits of one shape, where losses compare them.
        """
        values: dict[str, Tensor] = {}
        with ExitStack() as asked:
            said = [asked.enter_context(teacher.forward(call.args, call.kwargs, keys)) for teacher in teachers]
            if self.of_logits:
                student = logits_of(output, "student")
                teacher = self._combine([_alike(logits_of(each, "teacher"), student) for each in said], labels)
                values |= {name: loss(student, teacher, labels) for name, loss in self.of_logits.items()}
                back = [((weights or {}).get(name, 1.0), loss) for name, loss in self.of_logits.items()]
                for each in teachers:
                    each.accumulate(student, labels, back)
            for name, loss in self.of_features.items():
                pairs = [
                    self._pair(f"{name}_{index}", loss, feature(features[s], s), feature(teachers[0].taps[t], t))
                    for index, (s, t) in enumerate(loss.layers)
                ]
                values[name] = torch.stack([loss(s, t, labels) for s, t in pairs]).mean()
        return values

    def take(self, other: Objective) -> None:
        """Takes over the adapters of a copy."""
        self.adapters, self.shapes = other.adapters, other.shapes

    def restore(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Makes adapters for the shapes of features that another objective of the same losses has seen.

        Args:
            shapes: Its ``shapes``.
        """
        for key, (student, teacher) in shapes.items():
            self._adapter(key, self.of_features[key.rpartition("_")[0]], torch.Size(student), torch.Size(teacher))

    def _pair(self, key: str, loss: FeatureLoss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        adapter = self._adapter(key, loss, student.shape, teacher.shape)
        pair: tuple[Tensor, Tensor] = adapter(student, teacher.to(student.dtype))
        return pair

    def _adapter(self, key: str, loss: FeatureLoss, student: torch.Size, teacher: torch.Size) -> nn.Module:
        if key not in self.adapters:
            self.adapters[key] = loss.adapter(student, teacher)
            self.shapes[key] = [list(student), list(teacher)]
        return self.adapters[key]


def _alike(teacher: Tensor, student: Tensor) -> Tensor:
    if teacher.shape != student.shape:
        raise ValueError(
            f"The student returns logits of shape {tuple(student.shape)} and the teacher of shape "
            f"{tuple(teacher.shape)}: losses of logits need the same classes; losses of features do not."
        )
    return teacher.to(student.device)
