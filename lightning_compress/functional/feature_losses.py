"""Feature distillation losses: distances between intermediate features of a student and a teacher.

All reductions run in float32 (float64 inputs stay float64) and outside of autocast. Gradients stay bounded where
features, or differences of them, vanish. The teacher's features are detached, except in :func:`contrastive`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.functional.dtypes import class_indices, promote_dtypes

# Shorter vectors are divided by this instead of their norm: the gradient of x / |x| grows as 1 / |x|.
_MIN_NORM = 1e-3


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between features of equal shape. Romero et al. 2015, FitNets (arXiv:1412.6550).

    Args:
        student: Features of any shape.
        teacher: Features of the same shape.

    Raises:
        ValueError: If the shapes differ.

    >>> hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor(2.)
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"Features of student and teacher must have the same shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: project them with FitNet's adapter."
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = promote_dtypes(student, teacher.detach())
        return F.mse_loss(student, teacher)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between spatial attention maps. Zagoruyko and Komodakis 2017 (arXiv:1612.03928).

    An attention map is the sum of squares over channels, average-pooled to the smaller of both sizes and divided by its
    L2 norm. The loss is a mean over positions and samples, as in the paper's code, not a sum as in its text.

    Args:
        student: Features (N, C, H, W) or tokens (N, L, C).
        teacher: Features of the same kind; channels and sizes may differ.

    Raises:
        ValueError: If one is spatial and the other tokens, or either is neither.

    >>> attention_transfer(torch.ones(1, 2, 4, 4), torch.ones(1, 8, 2, 2))
    tensor(0.)
    """
    if student.ndim != teacher.ndim or student.ndim not in (3, 4):
        raise ValueError(
            "Attention transfer compares (N, C, H, W) with (N, C, H, W) or tokens (N, L, C) with tokens, not "
            f"{tuple(student.shape)} with {tuple(teacher.shape)}."
        )
    with torch.autocast(student.device.type, enabled=False):
        channels = 1 if student.ndim == 4 else 2
        maps = [x.square().sum(dim=channels) for x in promote_dtypes(student, teacher.detach())]
        size = [min(sides) for sides in zip(maps[0].shape[1:], maps[1].shape[1:], strict=True)]
        # Maps are squares of features, so the smallest norm is squared, too.
        student, teacher = (normalize_rows(_pool(x, size).flatten(1), _MIN_NORM**2) for x in maps)
        return F.mse_loss(student, teacher)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the similarity matrices of a batch. Tung and Mori 2019 (arXiv:1907.09682).

    The matrices hold inner products of all pairs of samples, each row divided by its L2 norm.

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...); only N must be equal.

    >>> similarity_preserving(torch.eye(2), 3 * torch.eye(2))
    tensor(0.)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (_similarity_matrix(x.flatten(1)) for x in promote_dtypes(student, teacher.detach()))
        return F.mse_loss(student, teacher)


def relational(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Huber loss between pairwise distances and between angles of triplets. Park et al. 2019, RKD (arXiv:1904.05068).

    Distances are divided by their mean; in angles, those below 0.01 of it are replaced by that. Means run over all
    pairs and triplets, those that repeat a sample included, as in the paper's code. The loss is 0 for fewer than three
    samples, up to rounding. Memory grows with the cube of the batch size.

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...); only N must be equal.
        distance: Weight of the distance term.
        angle: Weight of the angle term.

    >>> points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    >>> bool(relational(points, 2 * points + 1) < 1e-6)  # invariant to scaling and translation
    True
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (_relative_distances(x.flatten(1)) for x in promote_dtypes(student, teacher.detach()))
        loss = distance * F.smooth_l1_loss(student, teacher)
        return loss + angle * F.smooth_l1_loss(_cosines(student), _cosines(teacher)) if angle else loss


def contrastive(student: Tensor, teacher: Tensor, labels: Tensor | None = None, temperature: float = 0.07) -> Tensor:
    """Symmetric InfoNCE loss between embeddings of student and teacher. After Tian et al. 2020, CRD (arXiv:1910.10699).

    Negatives are the other samples of the batch on this device; there is no memory bank. The loss is the mean of
    student-to-teacher and teacher-to-student. Gradients flow into both, as the teacher's projection is trained too.

    Args:
        student: Embeddings (N, D), of any norm: they are normalized.
        teacher: Embeddings (N, D).
        labels: Class indices (N,), or class probabilities (N, C), of which the argmax is taken. Samples of one class
            are not used as negatives of each other.
        temperature: Divisor of the cosine similarities.

    >>> contrastive(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor(0.3133)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (normalize_rows(x) for x in promote_dtypes(student, teacher))
        logits = student @ teacher.T / temperature
        if labels is not None:
            classes = class_indices(labels)
            logits = logits.masked_fill((classes.unsqueeze(1) == classes).fill_diagonal_(False), -torch.inf)
        others = logits.logsumexp(dim=1) + logits.logsumexp(dim=0)
        return (others / 2 - logits.diagonal()).mean()


def normalize_rows(vectors: Tensor, min_norm: float = _MIN_NORM) -> Tensor:
    """Divide vectors (N, D) by their L2 norm, or by ``min_norm`` where that is larger.

    >>> normalize_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    # The clamp is inside of the square root, whose derivative is infinite at zero.
    return vectors / vectors.square().sum(dim=1, keepdim=True).clamp_min(min_norm**2).sqrt()


def _pool(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.adaptive_avg_pool2d(maps, (size[0], size[1])) if len(size) == 2 else F.adaptive_avg_pool1d(maps, size[0])


def _similarity_matrix(vectors: Tensor) -> Tensor:
    """Inner products of all pairs of samples, each row divided by its norm."""
    products = vectors @ vectors.T
    # Row normalization cancels any common factor. Dividing by the largest norm first makes the smallest norm relative
    # to the batch, so that the loss does not depend on the scale of the features.
    largest = products.detach().square().sum(dim=1).max().sqrt()
    return normalize_rows(products / largest.clamp_min(_MIN_NORM**2))


def _relative_distances(vectors: Tensor) -> Tensor:
    """Distances (N, N), divided by the mean of the non-zero ones."""
    # Not by |a|^2 + |b|^2 - 2 a b: that cancels digits, TF32 leaves few of them, and the square root has an infinite
    # gradient at zero, where cdist has none.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.clamp_min(_MIN_NORM)


def _cosines(distances: Tensor) -> Tensor:
    """Cosines (N, N, N) of the angles at the first sample between the other two; zero where one coincides with it."""
    # The law of cosines needs distances alone, not the (N, N, D) tensor of differences.
    squares, sides = distances.square(), distances.clamp_min(_MIN_NORM * 10)
    return (squares.unsqueeze(2) + squares.unsqueeze(1) - squares) / (2 * sides.unsqueeze(2) * sides.unsqueeze(1))
