"""k-means of numbers: the best few values for many.

Rows of numbers are clustered each by itself, in double precision on the CPU, so that every process finds the same.
A long row is first counted into fine bins. The optimum comes from dynamic programming over the points (Wang and Song
2011, "Ckmeans.1d.dp") or, where there are many, over groups of neighbouring ones, and is polished by Lloyd's algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Init = Literal["optimal", "kmeans++", "linear", "density"]
"""Where clustering starts: at the optimum of dynamic programming, at numbers drawn by their distance (Arthur and
Vassilvitskii 2007), evenly between the extremes, or evenly among the sorted numbers (Han et al. 2016)."""

_SHORT = 2**13  # numbers in a row that are sorted; longer rows are counted into bins
# For up to 32 clusters: then a bin is far narrower than a cluster, also where outliers widen the range.
_NUM_BINS = 2**14
_MAX_ITERATIONS = 10_000  # of which each is a search for a few numbers among sorted ones
_MOST_OPTIMAL = 64  # clusters of dynamic programming; for more, the best spacing is as good once it is polished
_NUM_STEPS = 1024  # in which the density of the points is seen
_MAX_CELLS = 2**18  # entries of a table, which bounds how many rows are worked on at a time


def cluster_rows(
    rows: Tensor,
    num_clusters: int,
    *,
    weights: Tensor | None = None,
    start: Tensor | None = None,
    init: Init = "optimal",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Clusters each row by itself.

    Args:
        rows: Finite numbers, one row for each codebook, shape (rows, columns).
        num_clusters: Number of clusters of a row.
        weights: What each number counts, not negative, shape of ``rows``; those of no weight are assigned, too.
        start: Values to start from instead of ``init``, ascending, shape (rows, num_clusters).
        init: Where to start.
        seed: Of the drawing, for ``"kmeans++"``.

    Returns:
        Codebooks (rows, num_clusters), ascending, of the dtype of ``rows``, and for each number the index of its
        value, int32, on the device of ``rows``. A cluster that stays empty has the value that it started with; at the
        optimum, that of a neighbour.

    >>> codebook, assignment = cluster_rows(torch.tensor([[1.0, 9.0, 2.0, 8.0]]), 2)
    >>> codebook.tolist(), assignment.tolist()
    ([[1.5, 8.5]], [[0, 1, 0, 1]])
    """
    at_a_time = max(1, _MAX_CELLS // max(_num_points(rows.shape[1], num_clusters), _num_groups(num_clusters) ** 2))
    parts = [
        _cluster(
            rows[i : i + at_a_time].detach().cpu(),
            num_clusters,
            None if weights is None else weights[i : i + at_a_time].detach().cpu(),
            None if start is None else start[i : i + at_a_time].detach().cpu().double(),
            _STARTS[init],
            seed,
        )
        for i in range(0, len(rows), at_a_time)
    ]
    codebooks, assignments = (torch.cat(part) for part in zip(*parts, strict=True))
    return codebooks.to(rows), assignments.to(rows.device)


def inertia(rows: Tensor, codebooks: Tensor, assignments: Tensor, weights: Tensor | None = None) -> float:
    """Sum of the squared distances, weighted, between numbers and the values that they are assigned."""
    squares = (rows.double() - codebooks.double().gather(1, assignments.long())).square()
    return float((squares if weights is None else squares * weights).sum())


@dataclass(frozen=True)
class _Points:
    """Rows of points, ascending, and what each weighs, both (rows, points) and double.

    Attributes:
        positions: Where they are.
        masses: What they weigh.
        spread: Turns a label for each point into one for each number of the row.
    """

    positions: Tensor
    masses: Tensor
    spread: Callable[[Tensor], Tensor]


def _cluster(
    rows: Tensor,
    num_clusters: int,
    weights: Tensor | None,
    start: Tensor | None,
    init: Callable[[_Points, int, int], Tensor],
    seed: int,
) -> tuple[Tensor, Tensor]:
    num_points = _num_points(rows.shape[1], num_clusters)
    points = _sorted(rows, weights) if num_points == rows.shape[1] else _binned(rows, weights, num_points)
    centers, cuts = _lloyd(points, init(points, num_clusters, seed) if start is None else start)
    labels = torch.searchsorted(cuts, torch.arange(num_points).expand(len(rows), -1).contiguous(), right=True)
    return centers, points.spread(labels.int())


def _num_points(columns: int, num_clusters: int) -> int:
    return columns if columns <= _SHORT else max(_NUM_BINS, 512 * num_clusters)


def _sorted(rows: Tensor, weights: Tensor | None) -> _Points:
    positions, order = rows.double().contiguous().sort(dim=1, stable=True)
    masses = torch.ones_like(positions) if weights is None else weights.double().gather(1, order)
    return _Points(positions, masses, lambda labels: torch.empty_like(labels).scatter_(1, order, labels))


def _binned(rows: Tensor, weights: Tensor | None, num_bins: int) -> _Points:
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    low, high = rows.aminmax(dim=1, keepdim=True)
    width = torch.where(high > low, (high - low) / num_bins, torch.ones_like(low))
    if rows.dtype == torch.float32 and not bool(((width > torch.finfo(width.dtype).tiny) & width.isfinite()).all()):
        return _binned(rows.double(), weights, num_bins)
    bins = rows.sub(low).div_(width).clamp_(0, num_bins - 1).int()
    if len(rows) > 1:
        bins += torch.arange(len(rows), dtype=torch.int32).mul_(num_bins).unsqueeze(1)
    bins = bins.flatten()
    size = len(rows) * num_bins
    weighted = rows.double() if weights is None else rows.double() * weights
    masses = torch.bincount(bins, None if weights is None else weights.flatten(), size).double().view(-1, num_bins)
    sums = torch.bincount(bins, weighted.flatten(), size).view(-1, num_bins)
    middles = low.double() + width.double() * (torch.arange(num_bins) + 0.5)
    # Rounding may let a mean leave its bin, and points have to ascend.
    means = torch.where(masses > 0, sums / masses, middles).cummax(dim=1).values
    return _Points(means, masses, lambda labels: labels.flatten().index_select(0, bins).view(len(rows), -1))


def _lloyd(points: _Points, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Centers, and before which points the clusters end, shape (rows, clusters - 1)."""
    masses, moments = (_cumulated(t) for t in (points.masses, points.masses * points.positions))
    cuts = torch.empty(0)
    for _ in range(_MAX_ITERATIONS):
        middles = (centers[:, :-1] + centers[:, 1:]) / 2
        before, cuts = cuts, torch.searchsorted(points.positions, middles.contiguous())
        if torch.equal(before, cuts):
            break
        centers = _means(masses, moments, cuts, centers)
    return centers, cuts


def _means(masses: Tensor, moments: Tensor, cuts: Tensor, otherwise: Tensor) -> Tensor:
    """Centers of mass between cuts; an empty cluster keeps its center."""
    ends = torch.cat([torch.zeros_like(cuts[:, :1]), cuts, torch.full_like(cuts[:, :1], masses.shape[1] - 1)], dim=1)
    if cuts.shape[1] == 0:
        ends = torch.tensor([[0, masses.shape[1] - 1]]).expand(len(masses), 2)
    mass, moment = (cumulated.gather(1, ends).diff(dim=1) for cumulated in (masses, moments))
    return torch.where(mass > 0, moment / mass, otherwise)


def _cumulated(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))


def _linear(points: _Points, num_clusters: int, seed: int) -> Tensor:
    steps = torch.linspace(0, 1, num_clusters, dtype=torch.double)
    low, high = _extremes(points)
    return low + (high - low) * steps


def _extremes(points: _Points) -> tuple[Tensor, Tensor]:
    """The outermost points that weigh anything; of a row without any, the outermost."""
    weighs = (points.masses > 0) | (points.masses.sum(dim=1, keepdim=True) == 0)
    first = weighs.int().argmax(dim=1, keepdim=True)
    last = weighs.shape[1] - 1 - weighs.flip(1).int().argmax(dim=1, keepdim=True)
    return points.positions.gather(1, first), points.positions.gather(1, last)


def _density(points: _Points, num_clusters: int, seed: int) -> Tensor:
    masses = points.masses.cumsum(dim=1)
    parts = (torch.arange(num_clusters, dtype=torch.double) + 0.5) / num_clusters
    return points.positions.gather(1, _where(masses, masses[:, -1:] * parts))


def _kmeans_plus_plus(points: _Points, num_clusters: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chances, centers = points.masses, []
    nearest = torch.full_like(points.positions, torch.inf)
    for _ in range(num_clusters):
        masses = chances.cumsum(dim=1)
        draw = torch.rand(len(masses), 1, generator=generator, dtype=torch.double) * masses[:, -1:]
        centers.append(points.positions.gather(1, _where(masses, draw)))
        nearest = torch.minimum(nearest, (points.positions - centers[-1]).square())
        chances = points.masses * nearest
    return torch.cat(centers, dim=1).sort(dim=1).values


def _where(cumulated: Tensor, amounts: Tensor) -> Tensor:
    """The points at which amounts of a cumulated quantity are reached."""
    return torch.searchsorted(cumulated, amounts.contiguous()).clamp_(max=cumulated.shape[1] - 1)


def _optimal(points: _Points, num_clusters: int, seed: int) -> Tensor:
    """Best centers, if clusters end between groups of neighbouring points, of which there are many."""
    masses, moments = (_cumulated(t) for t in (points.masses, points.masses * points.positions))
    # Empty clusters are where the one before them is.
    otherwise = _extremes(points)[0].expand(-1, num_clusters)
    if num_clusters > _MOST_OPTIMAL:
        return _means(masses, moments, _groups(points, num_clusters)[:, 1:-1], otherwise).cummax(dim=1).values
    squares = _cumulated(points.masses * points.positions.square())
    ends = _groups(points, min(_num_groups(num_clusters), points.positions.shape[1]))
    cuts = _best_cuts(masses.gather(1, ends), moments.gather(1, ends), squares.gather(1, ends), num_clusters)
    return _means(masses, moments, ends.gather(1, cuts), otherwise).cummax(dim=1).values


def _num_groups(num_clusters: int) -> int:
    return min(max(256, 8 * num_clusters), 512)


def _groups(points: _Points, num_groups: int) -> Tensor:
    """Ends of groups that are small where good clusters are: their number goes with the cube root of the density.

    The density of the best quantizer of many levels (Panter and Dite 1951).
    """
    num_points = points.positions.shape[1]
    if num_groups == num_points:
        return torch.arange(num_points + 1).expand(len(points.positions), -1)
    share = _smoothed(points).cumsum(dim=1)
    parts = torch.arange(1, num_groups, dtype=torch.double) / num_groups
    inner = _where(share, share[:, -1:] * parts) + 1
    outer = torch.zeros_like(inner[:, :1])
    return torch.cat([outer, inner, outer + num_points], dim=1)


def _smoothed(points: _Points) -> Tensor:
    """Cube root of the density times the distance to the next point, the density as that of many points together."""
    num_points = points.positions.shape[1]
    size = max(1, num_points // _NUM_STEPS)
    windows = torch.arange(0, num_points, size)
    starts = points.positions[:, windows]
    masses = _cumulated(points.masses)
    mass = masses.gather(1, torch.cat([windows, torch.tensor([num_points])]).expand(len(masses), -1)).diff(dim=1)
    # Windows without points belong to the one before, so that what stands behind a wide gap is told apart.
    last = points.positions[:, -1:]
    begins = torch.cat([torch.where(mass > 0, starts, last), last], dim=1)[:, 1:].flip(1).cummin(dim=1).values.flip(1)
    widths = begins - starts
    share = (mass * widths.square()).pow(1 / 3) / size
    return share.repeat_interleave(size, dim=1)[:, :num_points]


def _best_cuts(masses: Tensor, moments: Tensor, squares: Tensor, num_clusters: int) -> Tensor:
    """Before which groups clusters end, from cumulated quantities (rows, groups + 1); (rows, clusters - 1)."""
    # cost[r, j, i]: of a cluster of the groups i to j - 1.
    mass = masses.unsqueeze(2) - masses.unsqueeze(1)
    cost = squares.unsqueeze(2) - squares.unsqueeze(1)
    cost -= (moments.unsqueeze(2) - moments.unsqueeze(1)).square_().div_(mass.clamp_(min=torch.finfo(mass.dtype).tiny))
    backwards = torch.ones(cost.shape[1:], dtype=torch.bool).triu(1)
    cost.clamp_(min=0.0).masked_fill_(backwards, torch.inf)
    # best[k][r, j]: of k + 1 clusters of the groups before j.
    best = [cost[:, :, 0]]
    for _ in range(num_clusters - 1):
        best.append((cost + best[-1].unsqueeze(1)).amin(dim=2))
    cuts = torch.full((len(cost), num_clusters), cost.shape[1] - 1)
    # Minima are found again where they are needed, as indices of all would take most of the time.
    rows = torch.arange(len(cost))
    for k in range(num_clusters - 1, 0, -1):
        cuts[:, k - 1] = (cost[rows, cuts[:, k]] + best[k - 1]).argmin(dim=1)
    return cuts[:, :-1]


_STARTS: dict[str, Callable[[_Points, int, int], Tensor]] = {
    "optimal": _optimal,
    "kmeans++": _kmeans_plus_plus,
    "linear": _linear,
    "density": _density,
}
