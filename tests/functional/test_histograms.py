"""Histograms that add up exactly, and ranges that are as good as trying them all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional import histograms
from lightning_compress.functional.quantize import fake_quantize, scale_of_range

BINS = 4096


def extremes_of(rows: Tensor) -> Tensor:
    return torch.stack([-rows.amin(1), rows.amax(1)], dim=1)


def histogram(rows: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor]:
    extremes = extremes_of(rows)
    return histograms.histogram(rows, extremes, bins), extremes


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_value_is_in_its_bin() -> None:
    rows = normal(3, 1000) * torch.tensor([[0.01], [1.0], [7.0]])
    counts, extremes = histogram(rows, 64)
    assert counts.sum(dim=1).tolist() == [1000, 1000, 1000]
    edges = histograms.edges(counts, extremes)
    assert edges[-1] >= rows.max() > edges[-1] / 2 or edges[-1] >= -rows.min() > edges[-1] / 2
    for row, count in zip(rows, counts, strict=True):
        assert torch.equal(torch.histogram(row, edges)[0], count)


@given(
    scales=st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3.0, 1e4]), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_merged_is_counted_together(scales: list[float], seed: int) -> None:
    parts = [scale * normal(2, 50, seed=seed + i) for i, scale in enumerate(scales)]
    whole, extremes = histogram(torch.cat(parts, dim=1), 256)
    merged = sum(histograms.widened(*histogram(part, 256), extremes) for part in parts)
    assert torch.equal(merged, whole)


def test_doubling_merges_two_bins() -> None:
    counts, before = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.5]])
    assert histograms.widened(counts, before, torch.tensor([[1.0, 1.0]])).tolist() == [[1, 2, 3, 4]]
    assert histograms.widened(counts, before, torch.tensor([[2.5, 1.0]])).tolist() == [[0, 3, 7, 0]]
    assert histograms.widened(counts[:, :0], before, torch.tensor([[9.0, 9.0]])).shape == (1, 0)


@pytest.mark.parametrize(("extremes", "power"), [([0.0, 0.0], 0), ([1.0, 0.0], 1), ([0.0, 0.99], 0), ([-2.0, 5.0], 3)])
def test_powers(extremes: list[float], power: int) -> None:
    assert histograms.exponent(torch.tensor([extremes])) == power


def test_percentiles_leave_out_what_they_say() -> None:
    rows = torch.cat([normal(2, 100_000), torch.full((2, 20), 50.0), torch.full((2, 20), -50.0)], dim=1)
    counts, extremes = histogram(rows)
    low, high = histograms.percentiles(counts, extremes, 0.999)
    bin_width = 128 / BINS
    expected = torch.quantile(rows, torch.tensor([0.001, 0.999]), dim=1)
    assert ((low - expected[0]).abs() <= bin_width).all()
    assert ((high - expected[1]).abs() <= bin_width).all()


def test_all_that_is_kept_is_the_extremes() -> None:
    counts, extremes = histogram(normal(2, 1000))
    low, high = histograms.percentiles(counts, extremes, 1.0)
    torch.testing.assert_close(-low, extremes[:, 0])
    torch.testing.assert_close(high, extremes[:, 1])


def error(rows: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    limits = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    scale, zero = scale_of_range(low, high, low=limits[0], high=limits[1], symmetric=symmetric)
    rounded = fake_quantize(rows, scale[:, None], zero[:, None], low=limits[0], high=limits[1])
    return (rounded - rows).square().mean(dim=1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_squared_error_is_as_small_as_by_trying_all(bits: int, symmetric: bool) -> None:
    rows = normal(2, 20_000) * torch.tensor([[1.0], [3.0]])
    rows = rows if symmetric else rows.relu()
    counts, extremes = histogram(rows)
    found = histograms.best_span(
        counts, extremes, num_levels=2**bits - symmetric, symmetric=symmetric, loss=histograms.squared_error
    )
    largest = extremes.amax(dim=1)
    tried = [(-f * largest if symmetric else 0 * largest, f * largest) for f in torch.linspace(0.1, 1, 181)]
    best = torch.stack([error(rows, *ends, bits, symmetric) for ends in tried]).amin(dim=0)
    # At 8 bits a step is but a few bins wide.
    assert (error(rows, *found, bits, symmetric) <= best * (1.1 if bits == 8 else 1.02)).all()


def test_the_divergence_clips_outliers_and_keeps_what_has_none() -> None:
    plain = normal(1, 50_000).abs()
    flat = torch.linspace(0, 1, 50_000).unsqueeze(0)
    outliers = plain.clone()
    outliers[0, :3] = 30.0
    ends = []
    for rows in (plain, flat, outliers):
        counts, extremes = histogram(rows)
        low, high = histograms.best_span(counts, extremes, num_levels=256, symmetric=False, loss=histograms.divergence)
        assert low == 0
        assert 0 < high <= extremes[0, 1]
        ends.append(float(high / extremes[0, 1]))
    assert ends[2] < 0.5
    assert ends[1] > 0.95


@pytest.mark.parametrize("loss", [histograms.squared_error, histograms.divergence])
@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_constants_have_a_range(loss: histograms.Loss, value: float) -> None:
    counts, extremes = histogram(torch.full((2, 10), value))
    for symmetric in (False, True):
        low, high = histograms.best_span(counts, extremes, num_levels=255, symmetric=symmetric, loss=loss)
        assert torch.isfinite(low).all()
        assert torch.isfinite(high).all()
        assert (low <= 0).all()
        assert (high >= 0).all()
