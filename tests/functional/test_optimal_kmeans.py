"""Dynamic programming against brute force, without Lloyd's algorithm after it."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional import optimal_kmeans
from lightning_compress.functional.optimal_kmeans import max_groups, optimal_centers
from lightning_compress.functional.weighted_points import WeightedPoints


def points_of(positions: Tensor, masses: Tensor | None = None) -> WeightedPoints:
    positions = positions.double().sort(dim=1).values
    return WeightedPoints(positions, torch.ones_like(positions) if masses is None else masses.double(), torch.clone)


def inertia(points: WeightedPoints, centers: Tensor) -> float:
    """With each point at its nearest center."""
    distances = (points.positions.unsqueeze(2) - centers.unsqueeze(1)).square().amin(dim=2)
    return float((distances * points.masses).sum())


def brute_force(points: WeightedPoints, num_clusters: int) -> float:
    x, m = points.positions[0], points.masses[0]
    n = len(x)

    def cost(begin: int, end: int) -> float:
        mass = m[begin:end].sum()
        mean = (m[begin:end] * x[begin:end]).sum() / mass
        return float((m[begin:end] * (x[begin:end] - mean).square()).sum())

    partitions = combinations(range(1, n), min(num_clusters, n) - 1)
    return min(sum(cost(a, b) for a, b in zip((0, *cuts), (*cuts, n), strict=True)) for cuts in partitions)


@given(
    row=st.lists(st.integers(-20, 20), min_size=1, max_size=8),
    num_clusters=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_few_points_are_clustered_exactly(row: list[int], num_clusters: int, data: st.DataObject) -> None:
    masses = data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=len(row), max_size=len(row)))
    points = points_of(torch.tensor([row]), torch.tensor([masses]))
    centers = optimal_centers(points, num_clusters)
    assert centers.shape == (1, num_clusters)
    assert (centers.diff(dim=1) >= 0).all()
    assert inertia(points, centers) == pytest.approx(brute_force(points, num_clusters), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("num_clusters", [2, 16, optimal_kmeans._MAX_OPTIMAL, optimal_kmeans._MAX_OPTIMAL + 1])
def test_groups_of_many_points_cost_little(num_clusters: int) -> None:
    row = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    points = points_of(row)
    centers = optimal_centers(points, num_clusters)
    assert (centers.diff(dim=1) > 0).all()
    # Optimal quantization of a normal distribution: 0.3634 of the variance for 2 levels, and Panter and Dite's
    # sqrt(3) pi / 2 / N^2 for many.
    best = 0.3634 if num_clusters == 2 else 3**0.5 * torch.pi / 2 / num_clusters**2
    assert inertia(points, centers) < 5000 * best * 1.1


def test_group_boundaries_ascend_and_cover_all_points() -> None:
    row = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    bounds = optimal_kmeans._group_bounds(points_of(row), max_groups(4))
    assert bounds[:, 0].tolist() == [0, 0]
    assert bounds[:, -1].tolist() == [3000, 3000]
    assert (bounds.diff(dim=1) >= 0).all()


def test_a_group_ends_at_a_wide_gap() -> None:
    row = torch.cat([torch.linspace(0, 1, 1500), torch.linspace(1000, 1001, 1500)]).unsqueeze(0)
    bounds = optimal_kmeans._group_bounds(points_of(row), 256)
    assert 1500 in bounds[0].tolist()


@pytest.mark.parametrize(("columns", "num_clusters"), [(12, 8), (200, optimal_kmeans._MAX_OPTIMAL + 6)])
def test_centers_ascend_where_intervals_have_no_mass(columns: int, num_clusters: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(200, columns, generator=generator)
    masses = (torch.rand(200, columns, generator=generator) < 0.2).double()
    centers = optimal_centers(points_of(rows, masses), num_clusters)
    assert (centers.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("columns", range(2, 10))
def test_centers_ascend_where_all_values_are_equal(columns: int) -> None:
    """The mean of equal values may be rounded to one below them, and below the centers of empty clusters."""
    rows = torch.linspace(0.1, 1.1, 100, dtype=torch.float64).unsqueeze(1).expand(-1, columns)
    centers = optimal_centers(WeightedPoints(rows, torch.ones_like(rows), torch.clone), 3)
    assert (centers.diff(dim=1) >= 0).all()
