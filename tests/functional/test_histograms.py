"""Histograms over power-of-two ranges, and their exact sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional import histograms

BINS = 4096


def min_max_of(rows: Tensor) -> Tensor:
    return torch.stack([-rows.amin(1), rows.amax(1)], dim=1)


def histogram(rows: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor]:
    min_max = min_max_of(rows)
    return histograms.histogram(rows, min_max, bins), min_max


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_value_is_in_its_bin() -> None:
    rows = normal(3, 1000) * torch.tensor([[0.01], [1.0], [7.0]])
    counts, min_max = histogram(rows, 64)
    assert counts.sum(dim=1).tolist() == [1000, 1000, 1000]
    edges = histograms.bin_edges(counts, min_max)
    assert edges[-1] >= rows.max() > edges[-1] / 2 or edges[-1] >= -rows.min() > edges[-1] / 2
    for row, count in zip(rows, counts, strict=True):
        assert torch.equal(torch.histogram(row, edges)[0], count)


@given(
    scales=st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3.0, 1e4]), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_sum_of_rebinned_histograms_is_the_histogram_of_all_values(scales: list[float], seed: int) -> None:
    parts = [scale * normal(2, 50, seed=seed + i) for i, scale in enumerate(scales)]
    whole, min_max = histogram(torch.cat(parts, dim=1), 256)
    merged = sum(histograms.rebin(*histogram(part, 256), min_max) for part in parts)
    assert torch.equal(merged, whole)


def test_doubling_merges_two_bins() -> None:
    counts, before = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.5]])
    assert histograms.rebin(counts, before, torch.tensor([[1.0, 1.0]])).tolist() == [[1, 2, 3, 4]]
    assert histograms.rebin(counts, before, torch.tensor([[2.5, 1.0]])).tolist() == [[0, 3, 7, 0]]
    assert histograms.rebin(counts[:, :0], before, torch.tensor([[9.0, 9.0]])).shape == (1, 0)


@pytest.mark.parametrize(("min_max", "power"), [([0.0, 0.0], 0), ([1.0, 0.0], 1), ([0.0, 0.99], 0), ([-2.0, 5.0], 3)])
def test_powers(min_max: list[float], power: int) -> None:
    assert histograms.range_exponent(torch.tensor([min_max])) == power


def test_percentiles_exclude_the_given_fraction() -> None:
    rows = torch.cat([normal(2, 100_000), torch.full((2, 20), 50.0), torch.full((2, 20), -50.0)], dim=1)
    counts, min_max = histogram(rows)
    lower, upper = histograms.percentiles(counts, min_max, 0.999)
    bin_width = 128 / BINS
    expected = torch.quantile(rows, torch.tensor([0.001, 0.999]), dim=1)
    assert ((lower - expected[0]).abs() <= bin_width).all()
    assert ((upper - expected[1]).abs() <= bin_width).all()


def test_percentile_100_is_minimum_and_maximum() -> None:
    counts, min_max = histogram(normal(2, 1000))
    lower, upper = histograms.percentiles(counts, min_max, 1.0)
    torch.testing.assert_close(-lower, min_max[:, 0])
    torch.testing.assert_close(upper, min_max[:, 1])


def test_all_values_are_kept_though_sums_are_rounded() -> None:
    counts = torch.full((1, 3000), 7777.7)  # their float32 sum depends on the order
    lower, upper = histograms.percentiles(counts, torch.tensor([[0.9, 0.8]]), 1.0)
    assert lower.tolist() == pytest.approx([-0.9])
    assert upper.tolist() == pytest.approx([0.8])


def test_the_largest_value_below_a_power_is_in_the_last_bin() -> None:
    """The product with a number of bins that is no power of two is rounded up to the number of bins."""
    largest = torch.nextafter(torch.tensor(4.0), torch.tensor(0.0))
    counts, _ = histogram(torch.stack([-largest, largest]).view(1, 2), bins=6)
    assert counts.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0, 1.0]]


def test_a_percentile_at_an_edge_excludes_the_bin_below() -> None:
    counts, min_max = torch.ones(1, 4), torch.full((1, 2), 1.9)
    assert [float(end) for end in histograms.percentiles(counts, min_max, 0.75)] == [-1.0, 1.0]
