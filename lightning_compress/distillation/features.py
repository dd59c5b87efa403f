"""Losses of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_compress.distillation.adapters import Projections, Regression
from lightning_compress.distillation.loss import FeatureLoss, check_not_negative, check_positive
from lightning_compress.functional import feature_losses


@dataclass(frozen=True)
class FitNet(FeatureLoss):
    """Mean squared difference from a learned map of the student's. Romero et al. 2015 (arXiv:1412.6550).

    Args:
        layers: Pairs of names of modules, the student's and the teacher's.
        weight: What the loss is multiplied by where losses are added up.
    """

    @override
    def adapter(self, student: torch.Size, teacher: torch.Size) -> nn.Module:
        return Regression(student, teacher)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.hint(student, teacher)


@dataclass(frozen=True)
class AttentionTransfer(FeatureLoss):
    """Where features are large. Zagoruyko and Komodakis 2017 (arXiv:1612.03928).

    Args:
        layers: Pairs of names of modules, the student's and the teacher's, both with outputs (N, C, H, W) or both with
            tokens (N, L, C).
        weight: What the loss is multiplied by where losses are added up.
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
    """Which samples of the batch resemble which. Tung and Mori 2019 (arXiv:1907.09682).

    Args:
        layers: Pairs of names of modules, the student's and the teacher's.
        weight: What the loss is multiplied by where losses are added up.
    """

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.similarity_preserving(student, teacher)


@dataclass(frozen=True)
class RKD(FeatureLoss):
    """Distances and angles between the samples of the batch. Park et al. 2019 (arXiv:1904.05068).

    Args:
        layers: Pairs of names of modules, the student's and the teacher's.
        distance: Factor of the distances.
        angle: Factor of the angles.
        weight: What the loss is multiplied by where losses are added up.

    Raises:
        ValueError: If a factor is negative.
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
    """Tells samples apart by learned projections of both features. After Tian et al. 2020 (arXiv:1910.10699).

    The negatives are the batch's other samples: there is no memory bank.

    Args:
        layers: Pairs of names of modules, the student's and the teacher's.
        temperature: What cosines are divided by.
        dim: Size of the projections.
        weight: What the loss is multiplied by where losses are added up.

    Raises:
        ValueError: If ``temperature`` or ``dim`` is not above zero.
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
        return Projections(student, teacher, self.dim)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return feature_losses.contrastive(student, teacher, labels, self.temperature)
