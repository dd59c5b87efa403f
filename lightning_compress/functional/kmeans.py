"""1-D k-means with optimal initialization by dynamic programming.

Each row is clustered on its own, in float64 on the CPU, so that every process finds the same codebooks. Centers start
at the optimum of dynamic programming, or are chosen by ``init``, and Lloyd's algorithm moves the boundaries between
clusters to the nearest local optimum. Dynamic programming runs over at most 512 groups of values; rows of more than
8,192 values are first counted into fine bins, and more than 64 clusters start at the asymptotically optimal spacing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_compress.functional.optimal_kmeans import max_groups, optimal_centers
from lightning_compress.functional.weighted_points import (
    WeightedPoints,
    bin_values,
    first_reaching,
    interval_means,
    prefix_sums,
    sort_values,
    weighted_range,
)

Init = Literal["optimal", "kmeans++", "linear", "density"]
"""Initialization: the optimum of dynamic programming, k-means++ (Arthur and Vassilvitskii 2007), or centers evenly
spaced between minimum and maximum or at evenly spaced quantiles (linear and density-based in Han et al. 2016)."""

_MAX_SORTED = 2**13  # longest row that is sorted; longer ones are binned, which is linear in their length
# For up to 32 clusters. A bin is then far narrower than a cluster even where outliers stretch the range, so assigning
# whole bins costs next to nothing.
_NUM_BINS = 2**14
_MAX_ITERATIONS = 10_000  # of Lloyd's algorithm; each is only a binary search for num_clusters - 1 boundaries
_MAX_CELLS = 2**18  # entries of a table per chunk of rows, which bounds the memory


def cluster_rows(
    rows: Tensor,
    num_clusters: int,
    *,
    weights: Tensor | None = None,
    initial_centers: Tensor | None = None,
    init: Init = "optimal",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cluster the values of each row by 1-D k-means.

    Args:
        rows: Finite values, one row per codebook, shape (rows, columns).
        num_clusters: Number of clusters per row.
        weights: Non-negative mass of each value, shape of ``rows``; values of zero mass are assigned, too.
        initial_centers: Initial centers instead of ``init``, ascending, shape (rows, num_clusters).
        init: Initialization.
        seed: Random seed of ``"kmeans++"``.

    Returns:
        Codebooks (rows, num_clusters), ascending, of the dtype of ``rows``, and the codebook index of each value, int32
        of the shape of ``rows``; both on the device of ``rows``. An empty cluster keeps its initial center; at the
        optimum, that of a neighbor.

    >>> codebook, assignment = cluster_rows(torch.tensor([[1.0, 9.0, 2.0, 8.0]]), 2)
    >>> codebook.tolist(), assignment.tolist()
    ([[1.5, 8.5]], [[0, 1, 0, 1]])
    """
    # The largest tables are the points of a row and the cost of all pairs of group boundaries.
    num_points = _num_points(rows.shape[1], num_clusters)
    chunk = max(1, _MAX_CELLS // max(num_points, min(num_points, max_groups(num_clusters)) ** 2))
    parts = [
        _cluster(
            rows[i : i + chunk].detach().cpu(),
            num_clusters,
            None if weights is None else weights[i : i + chunk].detach().cpu(),
            None if initial_centers is None else initial_centers[i : i + chunk].detach().cpu().double(),
            _INITS[init],
            seed,
        )
        for i in range(0, len(rows), chunk)
    ]
    codebooks, assignments = (torch.cat(part) for part in zip(*parts, strict=True))
    return codebooks.to(rows), assignments.to(rows.device)


def _cluster(
    rows: Tensor,
    num_clusters: int,
    weights: Tensor | None,
    initial_centers: Tensor | None,
    init: Callable[[WeightedPoints, int, int], Tensor],
    seed: int,
) -> tuple[Tensor, Tensor]:
    num_points = _num_points(rows.shape[1], num_clusters)
    points = sort_values(rows, weights) if num_points == rows.shape[1] else bin_values(rows, weights, num_points)
    initial = init(points, num_clusters, seed) if initial_centers is None else initial_centers
    centers, bounds = _lloyd(points, initial)
    # The label of a point is the number of boundaries at or before it.
    labels = torch.searchsorted(bounds, torch.arange(num_points).expand(len(rows), -1).contiguous(), right=True)
    return centers, points.spread(labels.int())


def _num_points(columns: int, num_clusters: int) -> int:
    return columns if columns <= _MAX_SORTED else max(_NUM_BINS, 512 * num_clusters)


def _lloyd(points: WeightedPoints, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm; return centers and the first point of each cluster but the first, (rows, clusters - 1)."""
    # In one dimension an assignment step is a search for the midpoints between centers among the sorted points, and an
    # update step a difference of prefix sums: an iteration does not touch the points themselves.
    masses, moments = (prefix_sums(t) for t in (points.masses, points.masses * points.positions))
    bounds = torch.empty(0)
    for _ in range(_MAX_ITERATIONS):
        midpoints = (centers[:, :-1] + centers[:, 1:]) / 2
        before, bounds = bounds, torch.searchsorted(points.positions, midpoints.contiguous())
        if torch.equal(before, bounds):
            break
        centers = interval_means(masses, moments, bounds, centers)
    return centers, bounds


def _init_optimal(points: WeightedPoints, num_clusters: int, seed: int) -> Tensor:
    return optimal_centers(points, num_clusters)


def _init_linear(points: WeightedPoints, num_clusters: int, seed: int) -> Tensor:
    steps = torch.linspace(0, 1, num_clusters, dtype=torch.double)
    lowest, highest = weighted_range(points)
    return lowest + (highest - lowest) * steps


def _init_density(points: WeightedPoints, num_clusters: int, seed: int) -> Tensor:
    masses = points.masses.cumsum(dim=1)
    quantiles = (torch.arange(num_clusters, dtype=torch.double) + 0.5) / num_clusters
    return points.positions.gather(1, first_reaching(masses, masses[:, -1:] * quantiles))


def _init_kmeans_plus_plus(points: WeightedPoints, num_clusters: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    probabilities, centers = points.masses, []
    nearest = torch.full_like(points.positions, torch.inf)
    for _ in range(num_clusters):
        # Inverse transform sampling: a point is drawn with probability proportional to its mass times its squared
        # distance to the nearest center so far.
        cumulative = probabilities.cumsum(dim=1)
        draw = torch.rand(len(cumulative), 1, generator=generator, dtype=torch.double) * cumulative[:, -1:]
        centers.append(points.positions.gather(1, first_reaching(cumulative, draw)))
        nearest = torch.minimum(nearest, (points.positions - centers[-1]).square())
        probabilities = points.masses * nearest
    return torch.cat(centers, dim=1).sort(dim=1).values


_INITS: dict[str, Callable[[WeightedPoints, int, int], Tensor]] = {
    "optimal": _init_optimal,
    "kmeans++": _init_kmeans_plus_plus,
    "linear": _init_linear,
    "density": _init_density,
}
