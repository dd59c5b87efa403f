"""What makes features of a student and of a teacher comparable.

Features are (N, C), tokens (N, L, C) or (N, C, H, W). Whatever is learned here is not deployed. No gradient flows into
the teacher's feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_compress.functional.dtypes import widened
from lightning_compress.functional.feature_losses import unit


def check_features(*shapes: torch.Size) -> None:
    """Refuses what is no feature.

    Raises:
        ValueError: For shapes of less than 2 or more than 4 dimensions.
    """
    if not all(2 <= len(shape) <= 4 for shape in shapes):
        raise ValueError(
            f"Features of shape {' and '.join(str(tuple(shape)) for shape in shapes)} cannot be compared: choose "
            "layers with outputs (N, C), (N, L, C) or (N, C, H, W)."
        )


class AsTheyAre(nn.Module):
    """Features that need nothing."""

    @override
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return student, teacher.detach()


class ChannelMap(nn.Module):
    """A learned linear map of channels.

    It is no ``nn.Linear`` or ``nn.Conv2d``, so that what compresses layers leaves it alone: it is not deployed.

    Args:
        student: Channels of the input.
        teacher: Channels of the output.
        bias: Whether a constant is added.
    """

    def __init__(self, student: int, teacher: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(teacher, student))
        self.bias = nn.Parameter(torch.zeros(teacher)) if bias else None
        nn.init.kaiming_normal_(self.weight)

    @override
    def forward(self, feature: Tensor) -> Tensor:
        if feature.ndim == 4:
            return F.conv2d(feature, self.weight[:, :, None, None], self.bias)
        return F.linear(feature, self.weight, self.bias)


class Regression(nn.Module):
    """A learned linear map of the student's channels to the teacher's where their numbers differ, and one size.

    Sizes become the teacher's, by average pooling where there is less, by bilinear interpolation where there is more;
    the number of tokens by average pooling. Features of different kinds are averaged over space or tokens.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's.

    Raises:
        ValueError: For shapes of less than 2 or more than 4 dimensions.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size) -> None:
        super().__init__()
        check_features(student, teacher)
        self.averages = len(student) != len(teacher)
        of_student, of_teacher = _channels(student), _channels(teacher)
        same = of_student == of_teacher
        self.map: nn.Module = nn.Identity() if same else ChannelMap(of_student, of_teacher)

    @override
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        teacher = teacher.detach()
        if self.averages:
            return self.map(averaged(student)), averaged(teacher)
        return self.map(_sized(student, teacher.shape)), teacher


class Projections(nn.Module):
    """Learned embeddings of unit length of both features, averaged over space or tokens.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's.
        dim: Size of the embeddings, and of what is hidden between.

    Raises:
        ValueError: For shapes of less than 2 or more than 4 dimensions.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size, dim: int) -> None:
        super().__init__()
        check_features(student, teacher)
        self.student = _projection(_channels(student), dim)
        self.teacher = _projection(_channels(teacher), dim)

    @override
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.student(averaged(student)), self.teacher(averaged(teacher.detach()))
        student, teacher = widened(*embeddings)
        return unit(student), unit(teacher)


def averaged(feature: Tensor) -> Tensor:
    """A feature (N, C), averaged over space or tokens.

    >>> averaged(torch.arange(6.0).view(1, 3, 2))
    tensor([[2., 3.]])
    """
    if feature.ndim == 2:
        return feature
    return feature.mean(dim=1) if feature.ndim == 3 else feature.mean(dim=(2, 3))


def _channels(shape: torch.Size) -> int:
    return shape[2] if len(shape) == 3 else shape[1]


def _projection(channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(ChannelMap(channels, dim, bias=True), nn.ReLU(), ChannelMap(dim, dim, bias=True))


def _sized(feature: Tensor, like: torch.Size) -> Tensor:
    """A feature with the number of tokens or the height and width of another of its kind."""
    if feature.ndim == 2 or (feature.ndim == 3 and feature.shape[1] == like[1]):
        return feature
    if feature.ndim == 3:
        return F.adaptive_avg_pool1d(feature.transpose(1, 2), like[1]).transpose(1, 2)
    here, there = (feature.shape[2], feature.shape[3]), (like[2], like[3])
    smaller = (min(here[0], there[0]), min(here[1], there[1]))
    if smaller != here:
        feature = F.adaptive_avg_pool2d(feature, smaller)
    return F.interpolate(feature, there, mode="bilinear", align_corners=False) if smaller != there else feature
