"""Range search against exhaustive search, and its losses against sums bin by bin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional import histograms, range_search
from lightning_compress.functional.fake_quantize import fake_quantize, qparams_from_range

BINS = 4096


def histogram(rows: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor]:
    min_max = torch.stack([-rows.amin(1), rows.amax(1)], dim=1)
    return histograms.histogram(rows, min_max, bins), min_max


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def centers_of(counts: Tensor, min_max: Tensor) -> Tensor:
    edges = histograms.bin_edges(counts, min_max)
    return (edges[1:] + edges[:-1]) / 2


def squared_error_by_bins(counts: Tensor, centers: Tensor, lower: float, upper: float, num_levels: int) -> float:
    """Of one row, bin by bin."""
    step = (upper - lower) / (num_levels - 1)
    zero = round(lower / step)
    levels = [min(max(round(center / step), zero), zero + num_levels - 1) for center in centers.tolist()]
    errors = (torch.tensor(levels, dtype=torch.float64) * step - centers).square() - centers.double().square()
    return float((errors * counts).sum())


def divergence_by_bins(counts: Tensor, centers: Tensor, lower: float, upper: float, num_levels: int) -> float:
    """Of one row, as in Migacz 2017: clip, add clipped counts to the end bins, spread each level over its bins."""
    step = (upper - lower) / (num_levels - 1)
    inside = [bin_ for bin_, center in enumerate(centers.tolist()) if lower <= center < upper]
    p = counts[inside].double()
    levels = [round((center - lower) / step) for center in centers[inside].tolist()]
    q = torch.zeros_like(p)
    for level in set(levels):
        held = [i for i, other in enumerate(levels) if other == level and p[i] > 0]
        q[held] = p[held].mean() if held else 0.0
    p[0] += counts[: inside[0]].sum()
    p[-1] += counts[inside[-1] + 1 :].sum()
    p, q = p / p.sum(), (q / q.sum()).clamp(min=1e-6)
    return float(torch.xlogy(p, p / q).sum())


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    lower=st.floats(-0.9, -0.1),
    upper=st.floats(0.1, 0.9),
    num_levels=st.sampled_from([4, 15, 16]),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize(
    ("loss", "by_bins"),
    [(range_search.squared_error, squared_error_by_bins), (range_search.divergence, divergence_by_bins)],
)
def test_losses_equal_sums_bin_by_bin(
    loss: Callable[[Tensor, Tensor, int], range_search.Loss],
    by_bins: Callable[[Tensor, Tensor, float, float, int], float],
    seed: int,
    scale: float,
    lower: float,
    upper: float,
    num_levels: int,
) -> None:
    rows = scale * normal(2, 300, seed=seed) * torch.tensor([[1.0], [0.3]])
    counts, min_max = histogram(rows, 128)
    centers = centers_of(counts, min_max)
    # No center at an end, and none half-way between two levels.
    width = float(centers[1] - centers[0])
    lowers = [float(centers[0]) + width * (int(128 * (0.5 + lower / 2)) + 0.3), -4.2 * width]
    uppers = [float(centers[0]) + width * (int(128 * (0.5 + upper / 2)) + 0.3717), 5.4391 * width]
    ends = [torch.tensor(side).expand(2, 2) for side in (lowers, uppers)]
    losses = loss(counts, centers, num_levels)(*ends)
    expected = [
        [by_bins(row, centers, *pair, num_levels) for pair in zip(lowers, uppers, strict=True)] for row in counts
    ]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=losses.dtype), rtol=1e-4, atol=1e-6 * scale**2)


def error(rows: Tensor, lower: Tensor, upper: Tensor, bits: int, symmetric: bool) -> Tensor:
    limits = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    scale, zero = qparams_from_range(lower, upper, quant_min=limits[0], quant_max=limits[1], symmetric=symmetric)
    rounded = fake_quantize(rows, scale[:, None], zero[:, None], quant_min=limits[0], quant_max=limits[1])
    return (rounded - rows).square().mean(dim=1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_squared_error_is_as_small_as_by_trying_all(bits: int, symmetric: bool) -> None:
    rows = normal(2, 20_000) * torch.tensor([[1.0], [3.0]])
    rows = rows if symmetric else rows.relu()
    counts, min_max = histogram(rows)
    found = range_search.best_range(
        counts, min_max, num_levels=2**bits - symmetric, symmetric=symmetric, loss=range_search.squared_error
    )
    largest = min_max.amax(dim=1)
    tried = [(-f * largest if symmetric else 0 * largest, f * largest) for f in torch.linspace(0.1, 1, 181)]
    best = torch.stack([error(rows, *ends, bits, symmetric) for ends in tried]).amin(dim=0)
    # At 8 bits a step is but a few bins wide.
    assert (error(rows, *found, bits, symmetric) <= best * (1.1 if bits == 8 else 1.02)).all()


@pytest.mark.parametrize(("symmetric", "outlier"), [(True, 30.0), (True, 100.0), (False, 30.0)])
def test_outliers_far_away_are_clipped(symmetric: bool, outlier: float) -> None:
    rows = normal(1, 20_000) if symmetric else normal(1, 20_000).relu()
    plain = histogram(rows)
    rows[0, 7] = outlier
    spoiled = histogram(rows)
    ends = [
        range_search.best_range(*each, num_levels=4 - symmetric, symmetric=symmetric, loss=range_search.squared_error)
        for each in (plain, spoiled)
    ]
    values = rows[:, 8:]
    least, found = (float(error(values, *pair, 2, symmetric)) for pair in ends)
    assert found < 1.3 * least


def test_the_divergence_clips_outliers_only() -> None:
    plain = normal(1, 50_000).abs()
    flat = torch.linspace(0, 1, 50_000).unsqueeze(0)
    outliers = plain.clone()
    outliers[0, :3] = 30.0
    ends = []
    for rows in (plain, flat, outliers):
        counts, min_max = histogram(rows)
        lower, upper = range_search.best_range(
            counts, min_max, num_levels=256, symmetric=False, loss=range_search.divergence
        )
        assert lower == 0
        assert 0 < upper <= min_max[0, 1]
        ends.append(float(upper / min_max[0, 1]))
    assert ends[2] < 0.5
    assert ends[1] > 0.95


@pytest.mark.parametrize("loss", [range_search.squared_error, range_search.divergence])
@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_constants_have_a_range(loss: Callable[[Tensor, Tensor, int], range_search.Loss], value: float) -> None:
    counts, min_max = histogram(torch.full((2, 10), value))
    for symmetric in (False, True):
        lower, upper = range_search.best_range(counts, min_max, num_levels=255, symmetric=symmetric, loss=loss)
        assert torch.isfinite(lower).all()
        assert torch.isfinite(upper).all()
        assert (lower <= 0).all()
        assert (upper >= 0).all()


def test_a_range_stays_within_that_of_the_values_and_leaves_out_outliers_on_either_side() -> None:
    values = torch.linspace(-0.5, 0.5, 9999)
    rows = torch.stack([values, values, values])
    rows[1, 0], rows[2, -1] = -20.0, 20.0
    counts, min_max = histogram(rows)
    lower, upper = range_search.best_range(
        counts, min_max, num_levels=15, symmetric=False, loss=range_search.squared_error
    )
    assert (lower >= rows.amin(1)).all()
    assert (upper <= rows.amax(1)).all()
    assert (lower > -10).all()
    assert (upper < 10).all()


@pytest.mark.parametrize("loss", [range_search.squared_error, range_search.divergence])
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_scale_with_the_values(loss: Callable[..., range_search.Loss], symmetric: bool) -> None:
    rows = normal(3, 500) + torch.tensor([[0.0], [1.0], [-5.0]])
    found = []
    for scale in (1.0, 2.0**-6, 2.0**6):
        counts, min_max = histogram(rows * scale, 512)
        ends = range_search.best_range(counts, min_max, num_levels=15, symmetric=symmetric, loss=loss)
        found.append(torch.stack(ends) / scale)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=0)
