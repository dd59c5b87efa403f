"""Adapters that bring features of student and teacher to one shape before a loss compares them.

Features have shape ``(N, C)``, ``(N, L, C)`` (tokens) or ``(N, C, H, W)``. Adapters are trained with the student and
are not deployed. They detach the teacher's feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_compress.functional.dtypes import promote_dtypes
from lightning_compress.functional.feature_losses import normalize_rows


def check_feature_shapes(*shapes: torch.Size) -> None:
    """Check that features have between 2 and 4 dimensions.

    Raises:
        ValueError: For a shape of less than 2 or more than 4 dimensions.
    """
    if not all(2 <= len(shape) <= 4 for shape in shapes):
        raise ValueError(
            f"Features of shape {' and '.join(str(tuple(shape)) for shape in shapes)} cannot be compared: choose "
            "layers with outputs (N, C), (N, L, C) or (N, C, H, W)."
        )


class IdentityAdapter(nn.Module):
    """Adapter without parameters that returns both features unchanged, the teacher's detached."""

    @override
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return student, teacher.detach()


class ChannelLinear(nn.Module):
    """Learned linear map of the channel dimension, initialized as in He et al. 2015.

    Args:
        student: Number of input channels.
        teacher: Number of output channels.
        bias: If True, adds a learned bias.
    """

    # Not an nn.Linear or nn.Conv2d: pruning, clustering and quantization select layers by type, and must skip a layer
    # that is not deployed.

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


class RegressionAdapter(nn.Module):
    """Learned linear map of the student's channels to the teacher's, and resizing to the teacher's resolution.

    The map is the identity where both have the same number of channels. Larger features are reduced by average
    pooling, smaller ones enlarged by bilinear interpolation; tokens are pooled to the teacher's number of tokens.
    Features with different numbers of dimensions are averaged over space or tokens.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's feature.

    Raises:
        ValueError: For a shape of less than 2 or more than 4 dimensions.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size) -> None:
        super().__init__()
        check_feature_shapes(student, teacher)
        self.pools = len(student) != len(teacher)
        in_channels, out_channels = _num_channels(student), _num_channels(teacher)
        same = in_channels == out_channels
        self.map: nn.Module = nn.Identity() if same else ChannelLinear(in_channels, out_channels)

    @override
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        teacher = teacher.detach()
        if self.pools:
            return self.map(global_average(student)), global_average(teacher)
        return self.map(_resize(student, teacher.shape)), teacher


class ProjectionAdapter(nn.Module):
    """Two-layer perceptrons that project both features, averaged over space or tokens, to the unit sphere.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's feature.
        dim: Number of dimensions of the hidden layer and of the embedding.

    Raises:
        ValueError: For a shape of less than 2 or more than 4 dimensions.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size, dim: int) -> None:
        super().__init__()
        check_feature_shapes(student, teacher)
        self.student = _projection(_num_channels(student), dim)
        self.teacher = _projection(_num_channels(teacher), dim)

    @override
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        # The projection of the teacher's feature is trained, too; only the teacher itself is detached.
        embeddings = self.student(global_average(student)), self.teacher(global_average(teacher.detach()))
        student, teacher = promote_dtypes(*embeddings)
        return normalize_rows(student), normalize_rows(teacher)


def global_average(feature: Tensor) -> Tensor:
    """Average a feature over space or tokens.

    Args:
        feature: ``(N, C)``, ``(N, L, C)`` or ``(N, C, H, W)``.

    Returns:
        Mean of shape ``(N, C)``.

    >>> global_average(torch.arange(6.0).view(1, 3, 2))
    tensor([[2., 3.]])
    """
    if feature.ndim == 2:
        return feature
    return feature.mean(dim=1) if feature.ndim == 3 else feature.mean(dim=(2, 3))


def _num_channels(shape: torch.Size) -> int:
    return shape[2] if len(shape) == 3 else shape[1]


def _projection(channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(ChannelLinear(channels, dim, bias=True), nn.ReLU(), ChannelLinear(dim, dim, bias=True))


def _resize(feature: Tensor, shape: torch.Size) -> Tensor:
    """Resize tokens or a feature map to the number of tokens or the height and width in ``shape``."""
    if feature.ndim == 2 or (feature.ndim == 3 and feature.shape[1] == shape[1]):
        return feature
    if feature.ndim == 3:
        return F.adaptive_avg_pool1d(feature.transpose(1, 2), shape[1]).transpose(1, 2)
    size, target = (feature.shape[2], feature.shape[3]), (shape[2], shape[3])
    # Each axis on its own: pooling where it shrinks uses every value, which interpolation between neighbors does not.
    pooled = (min(size[0], target[0]), min(size[1], target[1]))
    if pooled != size:
        feature = F.adaptive_avg_pool2d(feature, pooled)
    return F.interpolate(feature, target, mode="bilinear", align_corners=False) if pooled != target else feature
