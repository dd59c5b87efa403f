"""Optimal boundaries of 1-D clusters, by dynamic programming over groups of neighboring points.

Clusters of the optimum are intervals of the sorted values, so dynamic programming over their boundaries finds it (Wang
and Song 2011, "Ckmeans.1d.dp"). Over n points it takes n^2 costs; over a few hundred groups of points the table is
small, and the optimum over group boundaries lies close to that over points: Lloyd's algorithm covers the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.functional.weighted_points import (
    WeightedPoints,
    first_reaching,
    interval_means,
    prefix_sums,
    weighted_range,
)

# Largest number of clusters for dynamic programming. For more, the asymptotically optimal spacing of centers is as good
# after Lloyd's algorithm, and much cheaper.
_MAX_OPTIMAL = 64
_NUM_WINDOWS = 1024  # resolution of the density estimate


def optimal_centers(points: WeightedPoints, num_clusters: int) -> Tensor:
    """Return the best centers among clusters that end at group boundaries, ascending, (rows, clusters).

    >>> positions = torch.tensor([[1.0, 2.0, 8.0, 9.0]], dtype=torch.float64)
    >>> optimal_centers(WeightedPoints(positions, torch.ones_like(positions), torch.clone), 2).tolist()
    [[1.5, 8.5]]
    """
    masses, moments = (prefix_sums(t) for t in (points.masses, points.masses * points.positions))
    # An empty cluster takes the center before it, by cummax: codebooks ascend, and Lloyd's midpoints stay ordered.
    fallback = weighted_range(points)[0].expand(-1, num_clusters)
    if num_clusters > _MAX_OPTIMAL:
        bounds = _group_bounds(points, num_clusters)[:, 1:-1]
        return interval_means(masses, moments, bounds, fallback).cummax(dim=1).values
    squares = prefix_sums(points.masses * points.positions.square())
    ends = _group_bounds(points, min(max_groups(num_clusters), points.positions.shape[1]))
    bounds = _best_bounds(masses.gather(1, ends), moments.gather(1, ends), squares.gather(1, ends), num_clusters)
    return interval_means(masses, moments, ends.gather(1, bounds), fallback).cummax(dim=1).values


def max_groups(num_clusters: int) -> int:
    """Return the largest number of groups; the table of costs has its square of entries per row."""
    return min(max(256, 8 * num_clusters), 512)


def _group_bounds(points: WeightedPoints, num_groups: int) -> Tensor:
    """Boundaries of groups of points, (rows, groups + 1), dense where the optimal clusters are narrow."""
    num_points = points.positions.shape[1]
    if num_groups == num_points:
        return torch.arange(num_points + 1).expand(len(points.positions), -1)
    # The optimal quantizer of many levels has a density of levels proportional to the cube root of that of the data
    # (Panter and Dite 1951): boundaries at equal shares of its integral.
    share = _cube_root_density(points).cumsum(dim=1)
    quantiles = torch.arange(1, num_groups, dtype=torch.double) / num_groups
    inner = first_reaching(share, share[:, -1:] * quantiles) + 1
    outer = torch.zeros_like(inner[:, :1])
    return torch.cat([outer, inner, outer + num_points], dim=1)


def _cube_root_density(points: WeightedPoints) -> Tensor:
    """Integral of the cube root of the density over each point, the density being estimated over windows of points."""
    num_points = points.positions.shape[1]
    size = max(1, num_points // _NUM_WINDOWS)
    windows = torch.arange(0, num_points, size)
    starts = points.positions[:, windows]
    masses = prefix_sums(points.masses)
    mass = masses.gather(1, torch.cat([windows, torch.tensor([num_points])]).expand(len(masses), -1)).diff(dim=1)
    # A window without mass is joined to the one before it, whose width then includes the gap: its large share puts a
    # boundary there, and values on either side of a wide gap get into different groups.
    last = points.positions[:, -1:]
    begins = torch.cat([torch.where(mass > 0, starts, last), last], dim=1)[:, 1:].flip(1).cummin(dim=1).values.flip(1)
    widths = begins - starts
    # (mass / width)^(1/3) * width, up to a factor: only shares of the sum are of interest
    share = (mass * widths.square()).pow(1 / 3)
    return share.repeat_interleave(size, dim=1)[:, :num_points]


def _best_bounds(masses: Tensor, moments: Tensor, squares: Tensor, num_clusters: int) -> Tensor:
    """Optimal first groups of all clusters but the first, (rows, clusters - 1).

    Args:
        masses: Prefix sums over groups of the masses, (rows, groups + 1).
        moments: The same of mass times position.
        squares: The same of mass times squared position.
        num_clusters: Number of clusters.
    """
    # cost[r, j, i] is the inertia of one cluster of groups i to j - 1: sum of m x^2 - (sum of m x)^2 / sum of m. Both
    # terms nearly cancel for narrow clusters far from zero, which is why all sums are float64; a small negative rest is
    # clamped.
    mass = masses.unsqueeze(2) - masses.unsqueeze(1)
    cost = squares.unsqueeze(2) - squares.unsqueeze(1)
    cost -= (moments.unsqueeze(2) - moments.unsqueeze(1)).square_().div_(mass.clamp_(min=torch.finfo(mass.dtype).tiny))
    backwards = torch.ones(cost.shape[1:], dtype=torch.bool).triu(1)
    cost.clamp_(min=0.0).masked_fill_(backwards, torch.inf)
    # best[k][r, j] is the least inertia of k + 1 clusters of the groups before j: the last cluster begins at some i,
    # and the k others share the groups before i. Optimal boundaries are monotone in j, which would save most of the
    # minima over i (divide and conquer, SMAWK) but makes them sequential; a dense min-plus product is faster here.
    best = [cost[:, :, 0]]
    for _ in range(num_clusters - 1):
        best.append((cost + best[-1].unsqueeze(1)).amin(dim=2))
    # Backtracking finds each minimum again for the one j that is needed: storing the argmin of all j would take most of
    # the time.
    bounds = torch.full((len(cost), num_clusters), cost.shape[1] - 1)
    rows = torch.arange(len(cost))
    for k in range(num_clusters - 1, 0, -1):
        bounds[:, k - 1] = (cost[rows, bounds[:, k]] + best[k - 1]).argmin(dim=1)
    return bounds[:, :-1]
