"""How far a student's features are from a teacher's.

Whatever comes in, sums are done in float32 (float64 stays) and outside of autocast. Gradients stay bounded where
features, or differences of them, vanish. None flows into the teacher, except in ``contrastive``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.functional.dtypes import classes, widened

_SHORTEST = 1e-3  # Shorter vectors are divided by this instead of their length, which would let gradients explode.


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features of one shape. Romero et al. 2015, FitNets (arXiv:1412.6550).

    Raises:
        ValueError: If shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"Features of student and teacher must have one shape, not {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: bring them together with FitNet's adapter."
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = widened(student, teacher.detach())
        return F.mse_loss(student, teacher)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps of where features are large. Zagoruyko and Komodakis 2017 (arXiv:1612.03928).

    A map is the sum of squares over channels, brought to the smaller of both sizes by average pooling, over its norm.
    Means are over positions and samples, as in the paper's code, not sums as in its text.

    Args:
        student: Features (N, C, H, W) or tokens (N, L, C).
        teacher: Features of the same kind; channels and sizes may differ.

    Raises:
        ValueError: If the kinds differ or have no positions.
    """
    if student.ndim != teacher.ndim or student.ndim not in (3, 4):
        raise ValueError(
            "Attention transfer compares (N, C, H, W) with (N, C, H, W) or tokens (N, L, C) with tokens, not "
            f"{tuple(student.shape)} with {tuple(teacher.shape)}."
        )
    with torch.autocast(student.device.type, enabled=False):
        channels = 1 if student.ndim == 4 else 2
        maps = [x.square().sum(dim=channels) for x in widened(student, teacher.detach())]
        size = [min(sides) for sides in zip(maps[0].shape[1:], maps[1].shape[1:], strict=True)]
        student, teacher = (unit(_pooled(x, size).flatten(1), _SHORTEST**2) for x in maps)
        return F.mse_loss(student, teacher)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of which samples resemble which, per pair of samples. Tung and Mori 2019 (arXiv:1907.09682).

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...); all but N may differ.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (_similarities(x.flatten(1)) for x in widened(student, teacher.detach()))
        return F.mse_loss(student, teacher)


def relational(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Huber loss of distances of pairs and of angles of triplets of samples. Park et al. 2019, RKD (arXiv:1904.05068).

    Distances count in units of their mean; those below 0.01 of it count as that in angles. As in the paper's code means
    are over all pairs and triplets, those with one sample twice among them. Fewer than three samples have no relations.
    Memory grows as the cube of the batch.

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...); all but N may differ.
        distance: Factor of the distances.
        angle: Factor of the angles.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (_relative_distances(x.flatten(1)) for x in widened(student, teacher.detach()))
        loss = distance * F.smooth_l1_loss(student, teacher)
        return loss + angle * F.smooth_l1_loss(_cosines(student), _cosines(teacher)) if angle else loss


def contrastive(student: Tensor, teacher: Tensor, labels: Tensor | None = None, temperature: float = 0.07) -> Tensor:
    """Finds a sample's teacher embedding among the batch's by the student's, and the other way. Tian et al. 2020, CRD.

    InfoNCE in the batch (after arXiv:1910.10699): there is no memory bank, so the negatives are the batch's other
    samples, on this device. The mean of both ways. Gradients flow into both: the teacher's projection is learned too.

    Args:
        student: Embeddings (N, D), of any length: they are divided by it.
        teacher: Embeddings (N, D).
        labels: Classes (N,), or probabilities (N, C), of which the largest counts; samples of one class are no
            negatives of each other.
        temperature: What cosines are divided by.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (unit(x) for x in widened(student, teacher))
        logits = student @ teacher.T / temperature
        if labels is not None:
            of = classes(labels)
            logits = logits.masked_fill((of.unsqueeze(1) == of).fill_diagonal_(False), -torch.inf)
        others = logits.logsumexp(dim=1) + logits.logsumexp(dim=0)
        return (others / 2 - logits.diagonal()).mean()


def unit(vectors: Tensor, shortest: float = _SHORTEST) -> Tensor:
    """Vectors (N, D) over their length; one below ``shortest`` counts as that."""
    return vectors / vectors.square().sum(dim=1, keepdim=True).clamp_min(shortest**2).sqrt()


def _pooled(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.adaptive_avg_pool2d(maps, (size[0], size[1])) if len(size) == 2 else F.adaptive_avg_pool1d(maps, size[0])


def _similarities(vectors: Tensor) -> Tensor:
    """Inner products of samples, each row over its norm."""
    products = vectors @ vectors.T
    largest = products.detach().square().sum(dim=1).max().sqrt()
    # The norms do not see the factor; what is short is short beside the batch's longest.
    return unit(products / largest.clamp_min(_SHORTEST**2))


def _relative_distances(vectors: Tensor) -> Tensor:
    """Distances (N, N) over the mean of those that are not zero."""
    # Without matrix products, which cancel digits, and have few of them under TF32; zero distances get no gradient.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.clamp_min(_SHORTEST)


def _cosines(distances: Tensor) -> Tensor:
    """Cosines (N, N, N) of the angles at the first sample between the other two, by the law of cosines.

    Zero where two of the three coincide at the corner.
    """
    squares, sides = distances.square(), distances.clamp_min(_SHORTEST * 10)
    return (squares.unsqueeze(2) + squares.unsqueeze(1) - squares) / (2 * sides.unsqueeze(2) * sides.unsqueeze(1))
