from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.functional.allocation import apportion, erdos_renyi_kernel

SHAPES = st.lists(st.lists(st.integers(1, 60), min_size=2, max_size=4), min_size=1, max_size=8)


def test_apportion_gives_to_the_largest_remainders() -> None:
    assert apportion([1.2, 2.7, 0.1], 4) == [1, 3, 0]


def test_apportion_gives_equal_remainders_to_the_first() -> None:
    assert apportion([0.5, 0.5, 0.5, 0.5], 2) == [1, 1, 0, 0]


@given(sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=30), sparsity=st.floats(0, 0.999))
@settings(max_examples=200, deadline=None)
def test_apportion_sums_to_the_total_and_stays_within_one(sizes: list[int], sparsity: float) -> None:
    shares = [size * sparsity for size in sizes]
    parts = apportion(shares, round(sum(sizes) * sparsity))
    assert sum(parts) == round(sum(sizes) * sparsity)
    assert all(abs(part - share) <= 1 + 1e-9 for part, share in zip(parts, shares, strict=True))
    assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))


def test_erk_is_in_proportion_to_the_sum_of_dimensions_over_their_product() -> None:
    small, large = erdos_renyi_kernel([(10, 10), (40, 40)], 0.1)
    assert small / large == pytest.approx((20 / 100) / (80 / 1600))
    assert 100 * small + 1600 * large == pytest.approx(170)


def test_erk_counts_the_kernel() -> None:
    conv, linear = erdos_renyi_kernel([(16, 16, 3, 3), (16, 256)], 0.05)
    assert conv / linear == pytest.approx((38 / 2304) / (272 / 4096))


def test_erk_leaves_small_layers_dense_and_makes_up_for_it() -> None:
    first, *others = erdos_renyi_kernel([(3, 3), (100, 100), (100, 100)], 0.05)
    assert first == 1.0
    assert others == pytest.approx([(0.05 * 20_009 - 9) / 20_000] * 2)


@given(shapes=SHAPES, density=st.floats(0.001, 1.0))
@settings(max_examples=200, deadline=None)
def test_erk_has_the_mean_and_never_more_than_one(shapes: list[list[int]], density: float) -> None:
    densities = erdos_renyi_kernel(shapes, density)
    sizes = []
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        sizes.append(size)
    assert all(0 < d <= 1 for d in densities)
    assert sum(d * size for d, size in zip(densities, sizes, strict=True)) == pytest.approx(density * sum(sizes))
