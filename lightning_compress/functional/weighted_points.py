"""Sorted or binned values with masses, and sums over intervals of them, for 1-D k-means.

A mass is the weight of a point in weighted k-means: "weight" alone would be confused with that of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightedPoints:
    """Sorted values or bins of each row.

    Attributes:
        positions: Ascending positions, float64, shape (rows, points).
        masses: Mass of each point, float64, of the same shape.
        spread: Maps a label per point to a label per value of the original row.
    """

    positions: Tensor
    masses: Tensor
    spread: Callable[[Tensor], Tensor]


def sort_values(rows: Tensor, weights: Tensor | None) -> WeightedPoints:
    """Return one point per value.

    >>> points = sort_values(torch.tensor([[3.0, 1.0, 2.0]]), None)
    >>> points.positions.tolist(), points.spread(torch.tensor([[0, 1, 2]])).tolist()
    ([[1.0, 2.0, 3.0]], [[2, 0, 1]])
    """
    positions, order = rows.double().contiguous().sort(dim=1, stable=True)
    masses = torch.ones_like(positions) if weights is None else weights.double().gather(1, order)
    return WeightedPoints(positions, masses, lambda labels: torch.empty_like(labels).scatter_(1, order, labels))


def bin_values(rows: Tensor, weights: Tensor | None, num_bins: int) -> WeightedPoints:
    """Return one point per bin, at the mean of its values; time is linear in the number of values.

    >>> points = bin_values(torch.tensor([[0.0, 0.5, 4.0]]), None, 2)
    >>> points.positions.tolist(), points.masses.tolist(), points.spread(torch.tensor([[7, 8]])).tolist()
    ([[0.25, 4.0]], [[2.0, 1.0]], [[7, 7, 8]])
    """
    # Indices are computed in float32, which halves the memory traffic; rounding moves a value to the next bin at most.
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    lowest, highest = rows.aminmax(dim=1, keepdim=True)
    width = torch.where(highest > lowest, (highest - lowest) / num_bins, torch.ones_like(lowest))
    # A range near the limits of float32 makes the width infinite or subnormal; float64 holds it.
    if rows.dtype == torch.float32 and not bool(((width > torch.finfo(width.dtype).tiny) & width.isfinite()).all()):
        return bin_values(rows.double(), weights, num_bins)
    bins = rows.sub(lowest).div_(width).clamp_(0, num_bins - 1).int()
    # One bincount for all rows: each row gets a block of bins of its own. On the CPU bincount adds in a fixed order, so
    # the sums are deterministic.
    if len(rows) > 1:
        bins += torch.arange(len(rows), dtype=torch.int32).mul_(num_bins).unsqueeze(1)
    bins = bins.flatten()
    size = len(rows) * num_bins
    weighted = rows.double() if weights is None else rows.double() * weights
    masses = torch.bincount(bins, None if weights is None else weights.flatten(), size).double().view(-1, num_bins)
    sums = torch.bincount(bins, weighted.flatten(), size).view(-1, num_bins)
    # Each bin is represented by the mean of its values, not by its middle: means of clusters of bins are then exactly
    # the means of their values. Rounding may take a mean out of its bin, but points must ascend, hence cummax.
    middles = lowest.double() + width.double() * (torch.arange(num_bins) + 0.5)
    means = torch.where(masses > 0, sums / masses, middles).cummax(dim=1).values
    return WeightedPoints(means, masses, lambda labels: labels.flatten().index_select(0, bins).view(len(rows), -1))


def prefix_sums(values: Tensor) -> Tensor:
    """Return the sums over the points before each boundary, (rows, points + 1), so that intervals are differences.

    >>> prefix_sums(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[0.0, 1.0, 3.0, 6.0]]
    """
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))


def interval_means(masses: Tensor, moments: Tensor, bounds: Tensor, fallback: Tensor) -> Tensor:
    """Return the mean position in each interval between boundaries, (rows, intervals).

    Args:
        masses: :func:`prefix_sums` of the masses.
        moments: :func:`prefix_sums` of mass times position.
        bounds: First point of each interval but the first, (rows, intervals - 1).
        fallback: Result where an interval has no mass, (rows, intervals).

    >>> masses, moments = (prefix_sums(torch.tensor(t)) for t in ([[1.0, 1.0, 2.0]], [[0.0, 4.0, 20.0]]))
    >>> interval_means(masses, moments, torch.tensor([[2]]), torch.zeros(1, 2)).tolist()
    [[2.0, 10.0]]
    """
    ends = torch.cat(
        [torch.zeros_like(bounds[:, :1]), bounds, torch.full_like(bounds[:, :1], masses.shape[1] - 1)], dim=1
    )
    if bounds.shape[1] == 0:
        ends = torch.tensor([[0, masses.shape[1] - 1]]).expand(len(masses), 2)
    mass, moment = (sums.gather(1, ends).diff(dim=1) for sums in (masses, moments))
    return torch.where(mass > 0, moment / mass, fallback)


def weighted_range(points: WeightedPoints) -> tuple[Tensor, Tensor]:
    """Return the first and last position of positive mass, (rows, 1) each; in a row of zero mass, of all points."""
    counts = (points.masses > 0) | (points.masses.sum(dim=1, keepdim=True) == 0)
    first = counts.int().argmax(dim=1, keepdim=True)
    last = counts.shape[1] - 1 - counts.flip(1).int().argmax(dim=1, keepdim=True)
    return points.positions.gather(1, first), points.positions.gather(1, last)


def first_reaching(cumulative: Tensor, amounts: Tensor) -> Tensor:
    """Return the index of the first point at which a cumulative sum reaches each amount.

    >>> first_reaching(torch.tensor([[1.0, 3.0, 6.0]]), torch.tensor([[0.5, 3.0, 3.5]])).tolist()
    [[0, 1, 2]]
    """
    return torch.searchsorted(cumulative, amounts.contiguous()).clamp_(max=cumulative.shape[1] - 1)
