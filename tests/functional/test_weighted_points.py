"""Sorted and binned points against plain loops."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_compress.functional.weighted_points import (
    WeightedPoints,
    bin_values,
    first_reaching,
    interval_means,
    prefix_sums,
    sort_values,
    weighted_range,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weighted", [False, True])
def test_sorted_points_carry_their_masses_and_spread_labels_back(weighted: bool) -> None:
    rows, weights = normal(3, 40), normal(3, 40, seed=1).abs()
    points = sort_values(rows, weights if weighted else None)
    assert (points.positions.diff(dim=1) >= 0).all()
    assert points.positions.dtype == points.masses.dtype == torch.float64
    spread = points.spread(points.masses)
    assert torch.equal(spread, weights.double() if weighted else torch.ones_like(spread))
    assert torch.equal(points.spread(points.positions), rows.double())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_bins", [2, 7, 100])
def test_bins_lie_at_the_means_of_their_values(weighted: bool, num_bins: int) -> None:
    rows = normal(3, 200) * torch.tensor([[0.01], [1.0], [50.0]])
    weights = normal(3, 200, seed=1).abs() if weighted else torch.ones(3, 200)
    points = bin_values(rows, weights if weighted else None, num_bins)
    bins = points.spread(torch.arange(num_bins).expand(3, -1))
    assert (points.positions.diff(dim=1) >= 0).all()
    for r in range(3):
        for b in range(num_bins):
            members = bins[r] == b
            mass = weights[r, members].double().sum()
            torch.testing.assert_close(points.masses[r, b], mass, rtol=1e-6, atol=0)
            if members.any():
                mean = (weights[r, members] * rows[r, members]).double().sum() / mass
                torch.testing.assert_close(points.positions[r, b], mean, rtol=1e-6, atol=1e-9)


def test_values_of_one_bin_are_neighbors() -> None:
    rows = normal(2, 500)
    bins = bin_values(rows, None, 16).spread(torch.arange(16).expand(2, -1))
    for row, labels in zip(rows, bins, strict=True):
        assert (labels[row.argsort()].diff() >= 0).all()
        assert labels.min() == 0
        assert labels.max() == 15


@pytest.mark.parametrize("scale", [1e-42, 3e38])
def test_ranges_beyond_float32_are_binned_in_float64(scale: float) -> None:
    rows = torch.tensor([[-1.0, -0.9, 0.9, 1.0]]).double().mul(scale).float()
    points = bin_values(rows, None, 4)
    assert points.positions.isfinite().all()
    assert points.masses.tolist() == [[2, 0, 0, 2]]


def test_interval_means_are_those_of_slices() -> None:
    positions, masses = normal(2, 30).double().sort(dim=1).values, normal(2, 30, seed=1).double().abs()
    bounds = torch.tensor([[4, 4, 20], [0, 1, 30]])
    fallback = torch.full((2, 4), 7.0, dtype=torch.float64)
    means = interval_means(prefix_sums(masses), prefix_sums(masses * positions), bounds, fallback)
    for r in range(2):
        ends = [0, *bounds[r].tolist(), 30]
        for k, (begin, end) in enumerate(pairwise(ends)):
            m, x = masses[r, begin:end], positions[r, begin:end]
            expected = (m * x).sum() / m.sum() if end > begin else torch.tensor(7.0, dtype=torch.float64)
            torch.testing.assert_close(means[r, k], expected)


def test_outermost_points_have_mass() -> None:
    positions = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    masses = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    first, last = weighted_range(WeightedPoints(positions, masses, torch.clone))
    assert first.flatten().tolist() == [2.0, 1.0, 1.0]
    assert last.flatten().tolist() == [3.0, 4.0, 4.0]


def test_amounts_beyond_the_sum_give_the_last_point() -> None:
    assert first_reaching(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0, 1.5, 2.5]])).tolist() == [[0, 0, 1, 1]]
