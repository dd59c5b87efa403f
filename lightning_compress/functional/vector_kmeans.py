"""k-means of short vectors, for product quantization of neighboring weights."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_ITERATIONS = 50
_MAX_CANDIDATES = 2**15  # random subset of the vectors from which k-means++ draws
_MAX_CELLS = 2**22  # entries of the distance matrix per chunk, which bounds the memory


def cluster_vectors(
    vectors: Tensor,
    num_clusters: int,
    *,
    weights: Tensor | None = None,
    initial_centers: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cluster vectors by Lloyd's algorithm with k-means++ initialization (Arthur and Vassilvitskii 2007).

    An empty cluster is restarted at the vector that is farthest from its center. Computed in float64 on the CPU, so
    that every process finds the same codebook.

    Args:
        vectors: Finite values, shape (vectors, dimensions).
        num_clusters: Number of clusters, at most that of vectors.
        weights: Non-negative mass of each component, shape of ``vectors``.
        initial_centers: Initial centers instead of k-means++, shape (num_clusters, dimensions).
        seed: Random seed of k-means++.

    Returns:
        The codebook (num_clusters, dimensions) of the dtype of ``vectors``, and the codebook index of each vector,
        int32 of shape (vectors,); both on the device of ``vectors``.

    >>> codebook, index = cluster_vectors(torch.tensor([[0.0, 1.0], [5.0, 5.0], [0.0, 2.0]]), 2)
    >>> codebook[index.long()].tolist()
    [[0.0, 1.5], [5.0, 5.0], [0.0, 1.5]]
    """
    points = vectors.detach().cpu().double()
    masses = torch.ones_like(points) if weights is None else weights.detach().cpu().double()
    if initial_centers is None:
        centers = _kmeans_plus_plus(points, masses, num_clusters, seed)
    else:
        centers = initial_centers.detach().cpu().double()
    index = torch.empty(0)
    for _ in range(_MAX_ITERATIONS):
        before = index
        index, distances = _nearest(points, masses, centers)
        if torch.equal(before, index):
            break
        centers = _means(points, masses, index, centers)
        centers = _restart_empty(points, index, distances, centers)
    return centers.to(vectors), index.int().to(vectors.device)


def _nearest(points: Tensor, masses: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest center, the first of equal ones, and the squared distance to it."""
    size = max(1, _MAX_CELLS // len(centers))
    parts = []
    for x, mass in zip(points.split(size), masses.split(size), strict=True):
        # sum of m (x - c)^2 = sum of m x^2 - 2 (m x) c + m c^2: matrix products instead of a (vectors, clusters,
        # dimensions) tensor. float64 has digits to spare for the cancellation.
        squares = (mass * x.square()).sum(dim=1, keepdim=True) - 2 * (mass * x) @ centers.T + mass @ centers.T.square()
        parts.append(squares.min(dim=1))
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _means(points: Tensor, masses: Tensor, index: Tensor, fallback: Tensor) -> Tensor:
    """Weighted mean of each component of each cluster; ``fallback`` where the mass is zero."""

    # On the CPU bincount adds in a fixed order, so the sums are deterministic.
    def sums(values: Tensor) -> Tensor:
        return torch.stack([torch.bincount(index, column, len(fallback)) for column in values.unbind(1)], dim=1)

    mass = sums(masses)
    return torch.where(mass > 0, sums(masses * points) / mass, fallback)


def _restart_empty(points: Tensor, index: Tensor, distances: Tensor, centers: Tensor) -> Tensor:
    empty = torch.bincount(index, minlength=len(centers)) == 0
    farthest = distances.sort(descending=True, stable=True).indices[: int(empty.sum())]
    return centers.index_put((empty.nonzero().flatten(),), points[farthest])


def _kmeans_plus_plus(points: Tensor, masses: Tensor, num_clusters: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Each draw is a pass over all candidates; a random subset of a large layer represents it well enough to start from.
    if len(points) > max(_MAX_CANDIDATES, num_clusters):
        subset = torch.randperm(len(points), generator=generator)[: max(_MAX_CANDIDATES, num_clusters)]
        points, masses = points[subset], masses[subset]
    probabilities, centers = masses.sum(dim=1), []
    nearest = torch.full_like(probabilities, torch.inf)
    for _ in range(num_clusters):
        # Inverse transform sampling, with probabilities proportional to the distance to the nearest center so far.
        cumulative = probabilities.cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.double) * cumulative[-1]
        centers.append(points[torch.searchsorted(cumulative, draw)])
        nearest = torch.minimum(nearest, (masses * (points - centers[-1]).square()).sum(dim=1))
        probabilities = nearest
    return torch.cat(centers)
