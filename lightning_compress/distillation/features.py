"""Distillation losses of features: FitNet, attention transfer, similarity preserving, RKD and CRD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_compress.distillation.adapters import ProjectionAdapter, RegressionAdapter
from lightning_compress.distillation.loss import FeatureLoss, check_not_negative, check_positive
from lightning_compress.functional import feature_losses


@dataclass(frozen=True)
class FitNet(FeatureLoss):
    """Mean squared error between the teacher's feature and a learned linear map of the student's.

    The map (FitNet's regressor) exists only where the numbers of channels differ; feature maps are resized to the
    teacher's resolution. Romero et al. 2015 (arXiv:1412.6550).

    Args:
        layers: Pairs of module names ``(student, teacher)``.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``layers`` are not pairs of names, or ``weight`` is negative or not finite.

    >>> import lightning_compress as lc
    >>> loss = lc.FitNet(layers=(("layer2", "layer3"),))
    >>> adapter = loss.adapter(torch.Size([2, 16, 8, 8]), torch.Size([2, 64, 4, 4]))
    >>> adapter.map.weight.shape
    torch.Size([64, 16])
    >>> loss(torch.ones(2, 64, 4, 4), torch.zeros(2, 64, 4, 4), labels=None)
    tensor(1.)
    """

    @override
    def adapter(self, student: torch.Size, teacher: torch.Size) -> nn.Module:
        return RegressionAdapter(student, teacher)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.hint(student, teacher)


@dataclass(frozen=True)
class AttentionTransfer(FeatureLoss):
    """Mean squared error between normalized spatial attention maps, the sums of squares over channels.

    Zagoruyko and Komodakis 2017 (arXiv:1612.03928). Numbers of channels and resolutions may differ.

    Args:
        layers: Pairs of module names ``(student, teacher)``, both with outputs ``(N, C, H, W)`` or both with tokens
            ``(N, L, C)``.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``layers`` are not pairs of names, or ``weight`` is negative or not finite.

    >>> import lightning_compress as lc
    >>> loss = lc.AttentionTransfer(layers=(("layer2", "layer3"),), weight=1000.0)
    >>> feature = torch.arange(16.0).view(1, 1, 4, 4)
    >>> loss(feature, -2 * feature, labels=None)
    tensor(0.)
    """

    @override
    def adapter(self, student: torch.Size, teacher: torch.Size) -> nn.Module:
        adapter = super().adapter(student, teacher)
        if len(student) != len(teacher) or len(student) == 2:
            raise ValueError(
                "AttentionTransfer compares (N, C, H, W) with (N, C, H, W) or tokens (N, L, C) with tokens, not "
                f"{tuple(student)} with {tuple(teacher)}: choose layers of one kind."
            )
        return adapter

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.attention_transfer(student, teacher)


@dataclass(frozen=True)
class SimilarityPreserving(FeatureLoss):
    """Mean squared error between the row-normalized similarity matrices ``(N, N)`` of the batch.

    Tung and Mori 2019 (arXiv:1907.09682). All dimensions but the batch may differ.

    Args:
        layers: Pairs of module names ``(student, teacher)``.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``layers`` are not pairs of names, or ``weight`` is negative or not finite.

    >>> import lightning_compress as lc
    >>> loss = lc.SimilarityPreserving(layers=(("layer2", "layer3"),))
    >>> loss(torch.eye(2), torch.eye(2, 5), labels=None)
    tensor(0.)
    """

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.similarity_preserving(student, teacher)


@dataclass(frozen=True)
class RKD(FeatureLoss):
    """Relational knowledge distillation: Huber loss of pairwise distances and of angles of triplets in the batch.

    Park et al. 2019 (arXiv:1904.05068). Memory grows as the cube of the batch size.

    Args:
        layers: Pairs of module names ``(student, teacher)``.
        distance: Factor of the distance term.
        angle: Factor of the angle term.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``layers`` are not pairs of names, or a factor is negative or not finite.

    >>> import lightning_compress as lc
    >>> loss = lc.RKD(layers=(("layer2", "layer3"),), angle=0.0)
    >>> feature = torch.tensor([[0.0], [1.0], [3.0]])
    >>> loss(feature, 2 * feature, labels=None)
    tensor(0.)
    """

    distance: float = 25.0
    angle: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "distance", self.distance)
        check_not_negative(self, "angle", self.angle)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.relational(student, teacher, self.distance, self.angle)


@dataclass(frozen=True)
class CRD(FeatureLoss):
    """Contrastive representation distillation: InfoNCE between learned projections of both features.

    After Tian et al. 2020 (arXiv:1910.10699), with the other samples of the batch as negatives instead of a memory
    bank.

    Args:
        layers: Pairs of module names ``(student, teacher)``.
        temperature: Temperature that divides the cosine similarities.
        dim: Number of dimensions of the projections.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``layers`` are not pairs of names, ``weight`` is negative or not finite, or ``temperature`` or
            ``dim`` is not above zero.

    >>> import lightning_compress as lc
    >>> loss = lc.CRD(layers=(("layer2", "layer3"),), dim=16)
    >>> adapter = loss.adapter(torch.Size([4, 8, 6, 6]), torch.Size([4, 32]))
    >>> student, teacher = adapter(torch.randn(4, 8, 6, 6), torch.randn(4, 32))
    >>> student.shape, teacher.shape
    (torch.Size([4, 16]), torch.Size([4, 16]))
    """

    temperature: float = 0.07
    dim: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature", self.temperature)
        if self.dim < 1:
            raise ValueError(f"CRD(dim={self.dim}) must be at least 1.")

    @override
    def adapter(self, student: torch.Size, teacher: torch.Size) -> nn.Module:
        return ProjectionAdapter(student, teacher, self.dim)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.contrastive(student, teacher, labels, self.temperature)
