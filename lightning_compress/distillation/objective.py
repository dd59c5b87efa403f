"""Evaluation of all distillation losses of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_compress.distillation.feature_hooks import FeatureHooks, feature_tensor
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.logit_comparison import LogitComparison
from lightning_compress.distillation.loss import Combine, FeatureLoss, LogitLoss
from lightning_compress.distillation.student_capture import StudentStep


class Objective(nn.Module):
    """Losses between a student and its teachers, with the adapters of the feature losses.

    Adapters are built in the first forward pass, from the shapes of the features.

    Args:
        losses: Losses by name.
        combine: Function from the logits ``(N, C)`` of several teachers, and labels, to their combined logits.
        class_dim: Dimension of the classes, by default found from the shape of the logits and the batch.

    Attributes:
        logit_losses: The logit losses.
        feature_losses: The feature losses by name.
        adapters: Adapters by ``"<loss>_<index of the pair>"``.
        shapes: Shapes of the features of student and teacher that each adapter was built for.
        failure: Reason that adapters could not be built before the fit, or ``None``.

    Raises:
        ValueError: For a name that cannot be part of a parameter's name, or a value that is not a loss.
    """

    def __init__(
        self, losses: Mapping[str, LogitLoss | FeatureLoss], combine: Combine, class_dim: int | None = None
    ) -> None:
        super().__init__()
        for name, loss in losses.items():
            if not name or "." in name:
                raise ValueError(f"losses: {name!r} must be a name without dots.")
            if not isinstance(loss, (LogitLoss, FeatureLoss)):
                raise ValueError(f"losses: {name!r} must be a loss such as lc.KD(), not {type(loss).__name__}.")
        logit_losses = {name: loss for name, loss in losses.items() if isinstance(loss, LogitLoss)}
        self.logit_losses = LogitComparison(logit_losses, combine, class_dim)
        self.feature_losses = {name: loss for name, loss in losses.items() if isinstance(loss, FeatureLoss)}
        self.adapters = nn.ModuleDict()
        self.shapes: dict[str, list[list[int]]] = {}
        self.failure: str | None = None

    @property
    def layers(self) -> tuple[list[str], list[str]]:
        """Names of the modules that feature losses compare, of the student and of the first teacher."""
        pairs = [pair for loss in self.feature_losses.values() for pair in loss.layers]
        return list(dict.fromkeys(s for s, _ in pairs)), list(dict.fromkeys(t for _, t in pairs))

    def forward(
        self, step: StudentStep, teachers: Sequence[FrozenNetwork], weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """Run the teachers on the student's inputs and compute all losses.

        Args:
            step: Forward pass of the student.
            teachers: The teachers.
            weights: Weights of the losses of teachers that are trained, by the loss's name; 1 by default.

        Returns:
            Scalar losses by name, without their weights.

        Raises:
            ValueError: If logit losses get logits of different shapes, or a feature cannot be read.
        """
        with ExitStack() as recording:
            for teacher in teachers:
                recording.enter_context(teacher.features.record())
            arguments = [teacher.arguments(step.args, step.kwargs, step.batch) for teacher in teachers]
            outputs = [t.forward(*given, step.keys, step.name) for t, given in zip(teachers, arguments, strict=True)]
            values: dict[str, Tensor] = {}
            if self.logit_losses.losses:
                values |= self.logit_losses(step.output, outputs, teachers, step.annotations, weights or {})
            for name, loss in self.feature_losses.items():
                labels = step.annotations.sample_labels
                values[name] = self._compare_features(name, loss, step.features, teachers[0].features, labels)
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
            self.failure = None
            self._get_adapter(key, loss, torch.Size(student), torch.Size(teacher))

    def shard_adapters(self, mesh: DeviceMesh) -> None:
        """Shard the parameters of adapters over the ranks of the student's, whose optimizer holds them; a collective.

        Raises:
            ValueError: For a mesh of more than one dimension.
        """
        for key, adapter in self.adapters.items():
            if isinstance(adapter, FSDPModule) or not any(True for _ in adapter.parameters()):
                continue
            if mesh.ndim > 1:
                raise ValueError(
                    f"The adapter {key!r} cannot be sharded over a mesh of {mesh.ndim} dimensions: shard the student "
                    "over the data-parallel mesh alone."
                )
            for parameter in adapter.parameters():
                # Ranks may have initialized it differently; DDP does this broadcast by itself.
                on_mesh = parameter.detach().to(mesh.device_type)
                dist.broadcast(on_mesh, dist.get_global_rank(mesh.get_group(), 0), group=mesh.get_group())
                parameter.data.copy_(on_mesh)
            fully_shard(adapter, mesh=mesh)

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
            adapter, shapes = loss.adapter(student, teacher), [list(student), list(teacher)]
            if self.failure is not None and any(True for _ in adapter.parameters()):
                raise ValueError(
                    f"The adapter {key!r} is trained, but could not be built before the optimizer ({self.failure}): "
                    f"call objective.build_adapters({{{key!r}: {shapes}}}) of the DistillationModule before the fit."
                )
            self.adapters[key], self.shapes[key] = adapter, shapes
        return self.adapters[key]
