"""k-means of short vectors, for codebooks whose entries stand for several neighbouring weights."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_ITERATIONS = 50
_NUM_DRAWN_FROM = 2**15  # vectors among which the first centers are drawn
_MAX_CELLS = 2**22  # distances that are held at a time


def cluster_vectors(
    vectors: Tensor,
    num_clusters: int,
    *,
    weights: Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Clusters vectors by Lloyd's algorithm, from centers drawn by their distance (Arthur and Vassilvitskii 2007).

    An empty cluster begins anew at the vector that is farthest from its center. Works in double precision on the CPU,
    so that every process finds the same.

    Args:
        vectors: Finite numbers, shape (vectors, dimensions).
        num_clusters: Number of clusters, at most that of vectors.
        weights: What each number counts, not negative, shape of ``vectors``.
        start: Centers to start from, shape (num_clusters, dimensions).
        seed: Of the drawing.

    Returns:
        The codebook, shape (num_clusters, dimensions), of the dtype of ``vectors``, and the index of each vector's
        entry, int32, on the device of ``vectors``.

    >>> codebook, index = cluster_vectors(torch.tensor([[0.0, 1.0], [5.0, 5.0], [0.0, 2.0]]), 2)
    >>> codebook[index.long()].tolist()
    [[0.0, 1.5], [5.0, 5.0], [0.0, 1.5]]
    """
    points = vectors.detach().cpu().double()
    masses = torch.ones_like(points) if weights is None else weights.detach().cpu().double()
    centers = _kmeans_plus_plus(points, masses, num_clusters, seed) if start is None else start.detach().cpu().double()
    index = torch.empty(0)
    for _ in range(_MAX_ITERATIONS):
        before = index
        index, distances = _nearest(points, masses, centers)
        if torch.equal(before, index):
            break
        centers = _means(points, masses, index, centers)
        centers = _refilled(points, index, distances, centers)
    return centers.to(vectors), index.int().to(vectors.device)


def _nearest(points: Tensor, masses: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest center, the first of equal ones, and the squared distance to it."""
    size = max(1, _MAX_CELLS // len(centers))
    parts = []
    for x, mass in zip(points.split(size), masses.split(size), strict=True):
        squares = (mass * x.square()).sum(dim=1, keepdim=True) - 2 * (mass * x) @ centers.T + mass @ centers.T.square()
        parts.append(squares.min(dim=1))
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _means(points: Tensor, masses: Tensor, index: Tensor, otherwise: Tensor) -> Tensor:
    def sums(values: Tensor) -> Tensor:
        return torch.stack([torch.bincount(index, column, len(otherwise)) for column in values.unbind(1)], dim=1)

    mass = sums(masses)
    return torch.where(mass > 0, sums(masses * points) / mass, otherwise)


def _refilled(points: Tensor, index: Tensor, distances: Tensor, centers: Tensor) -> Tensor:
    empty = torch.bincount(index, minlength=len(centers)) == 0
    farthest = distances.sort(descending=True, stable=True).indices[: int(empty.sum())]
    return centers.index_put((empty.nonzero().flatten(),), points[farthest])


def _kmeans_plus_plus(points: Tensor, masses: Tensor, num_clusters: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if len(points) > max(_NUM_DRAWN_FROM, num_clusters):
        some = torch.randperm(len(points), generator=generator)[: max(_NUM_DRAWN_FROM, num_clusters)]
        points, masses = points[some], masses[some]
    chances, centers = masses.sum(dim=1), []
    nearest = torch.full_like(chances, torch.inf)
    for _ in range(num_clusters):
        reached = chances.cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.double) * reached[-1]
        centers.append(points[torch.searchsorted(reached, draw).clamp_(max=len(points) - 1)])
        nearest = torch.minimum(nearest, (masses * (points - centers[-1]).square()).sum(dim=1))
        chances = nearest
    return torch.cat(centers)
